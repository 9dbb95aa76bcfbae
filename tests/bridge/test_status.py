"""How long is waited between attempts, and what the log is spared."""

from __future__ import annotations

import itertools
import logging

import pytest

from backplane.bridge import Retry
from backplane.bridge._news import Hush


def test_waits_are_random_below_a_bound_that_grows_up_to_a_maximum() -> None:
    bounds = [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
    for _ in range(100):
        waits = list(itertools.islice(Retry(initial=0.1, maximum=1).delays(), len(bounds)))
        assert all(0 <= wait <= bound for wait, bound in zip(waits, bounds, strict=True))
    firsts = {next(iter(Retry().delays())) for _ in range(100)}
    assert len(firsts) > 90
    assert max(firsts) > 0.05


@pytest.mark.parametrize(("attempts", "waits"), [(0, 0), (1, 0), (2, 1), (5, 4)])
def test_there_is_a_wait_between_two_attempts_and_none_after_the_last(
    attempts: int, waits: int
) -> None:
    assert len(list(Retry(attempts=attempts).delays())) == waits


def test_a_first_bound_above_the_maximum_is_the_maximum() -> None:
    assert all(next(iter(Retry(initial=9, maximum=0.1).delays())) <= 0.1 for _ in range(50))


@pytest.mark.parametrize("wrong", [{"initial": 0}, {"maximum": -1}, {"initial": float("nan")}])
def test_a_wait_that_is_none_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        Retry(**wrong)


def test_a_flood_of_lines_is_counted_instead_of_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    hush = Hush(2, 60)

    for now in (0, 1, 2, 59):
        hush.log(now, logging.INFO, "refused %d", now)
    hush.log(60, logging.INFO, "refused %d", 60)
    hush.log(120, logging.INFO, "refused %d", 120)

    assert caplog.messages == [
        "refused 0", "refused 1", "2 lines like the next were left out", "refused 60",
        "refused 120",
    ]  # fmt: skip
