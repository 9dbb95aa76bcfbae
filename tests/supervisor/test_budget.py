"""How many restarts are too many: the window, against a naive count."""

from __future__ import annotations

import math
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backplane.supervisor import Budget, SpecError
from backplane.supervisor._budget import Spending


@given(
    restarts=st.integers(0, 5),
    seconds=st.integers(1, 10),
    gaps=st.lists(st.integers(0, 6), max_size=40),
)
def test_a_budget_counts_the_restarts_within_the_window(
    restarts: int, seconds: int, gaps: list[int]
) -> None:
    spending = Spending(Budget(restarts, seconds))
    now = 0
    before: list[int] = []
    for gap in gaps:
        now += gap
        lately = [time for time in before if now - time <= seconds]
        granted = len(lately) < restarts
        assert spending.spend(now) == granted
        if granted:  # one that was refused is no restart
            before.append(now)


def test_the_window_includes_both_of_its_bounds() -> None:
    spending = Spending(Budget(1, 5))
    assert spending.spend(0)
    assert not spending.spend(5)
    spending = Spending(Budget(1, 5))
    assert spending.spend(0)
    assert spending.spend(math.nextafter(5, 6))


def test_a_budget_of_none_is_exceeded_by_the_first_restart() -> None:
    assert not Spending(Budget(0, 5)).spend(1e9)


def test_an_endless_window_forgets_nothing() -> None:
    spending = Spending(Budget(2, math.inf))
    assert [spending.spend(now) for now in (0, 1e6, 1e12)] == [True, True, False]


def test_a_huge_budget_is_never_spent() -> None:
    spending = Spending(Budget(sys.maxsize - 1, 5))
    assert all(spending.spend(0) for _ in range(1000))


@pytest.mark.parametrize("restarts", [-1, 1.0, "3", None, True, math.inf, 10**400])
def test_a_budget_wants_a_whole_number_of_restarts(restarts: int) -> None:
    with pytest.raises(SpecError, match="max_restarts must be a whole number"):
        Budget(restarts, 5)


@pytest.mark.parametrize("seconds", [-1, 0, "3", None, True, math.nan, -math.inf, 10**400])
def test_a_budget_wants_a_window_above_zero(seconds: float) -> None:
    with pytest.raises(SpecError, match="max_seconds must be"):
        Budget(3, seconds)
