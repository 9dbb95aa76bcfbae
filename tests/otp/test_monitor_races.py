"""Monitors, while both ends do something at the same time: each fires once, or was taken back."""

from __future__ import annotations

import functools
import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from backplane.otp import NOPROC, NORMAL, Down, Exited, Ref

if TYPE_CHECKING:  # mypy knows it by another name than pytest
    from otp.process_world import lone
else:
    from .process_world import lone


class Meanwhile(deque[Any]):
    """A mailbox at whose first message something else happens, as in another thread."""

    def __init__(self, then: Callable[[], object]) -> None:
        super().__init__()
        self._then: Callable[[], object] | None = then

    def append(self, message: Any) -> None:
        super().append(message)
        then, self._then = self._then, None
        if then is not None:
            then()


def test_a_watcher_that_ends_while_others_are_told_hears_nothing() -> None:
    target, first, second = lone(), lone(), lone()
    first.mailbox = Meanwhile(lambda: second.end(NORMAL))
    ref = first.monitor(target.pid)
    second.monitor(target.pid)

    target.end("x")

    assert list(first.mailbox) == [Down(ref, target.pid, "x")]
    assert not second.mailbox


def test_a_monitor_that_is_taken_back_while_others_are_told_does_not_fire() -> None:
    target, first, second = lone(), lone(), lone()
    back: list[bool] = []
    first.mailbox = Meanwhile(lambda: back.append(second.demonitor(refs[1])))
    refs = [first.monitor(target.pid), second.monitor(target.pid), second.monitor(target.pid)]

    target.end("x")

    assert back == [True]
    assert list(first.mailbox) == [Down(refs[0], target.pid, "x")]
    assert list(second.mailbox) == [Down(refs[2], target.pid, "x")]


def together(*jobs: Callable[[], object]) -> None:
    """Run functions in threads that begin at the same time."""
    gate = threading.Barrier(len(jobs))

    def run(job: Callable[[], object]) -> None:
        gate.wait()
        job()

    threads = [threading.Thread(target=run, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.mark.usefixtures("rapid_switching")
@pytest.mark.parametrize("_", range(50))
def test_each_monitor_of_one_that_ends_meanwhile_fires_once(_: int) -> None:
    target, watcher = lone(), lone()
    refs: list[Ref] = []

    def visit() -> None:
        refs.extend([watcher.monitor(target.pid) for _ in range(20)])

    together(visit, functools.partial(target.end, "x"))

    reasons = {down.ref: down.reason for down in watcher.mailbox}
    assert len(watcher.mailbox) == len(refs)
    # Those of before the end hear the reason, those of after it cannot know it.
    told = [reasons[ref] for ref in refs]
    assert told == ["x"] * told.count("x") + [NOPROC] * told.count(NOPROC)
    assert not watcher._monitors
    assert not target._watchers


@pytest.mark.usefixtures("rapid_switching")
@pytest.mark.parametrize("_", range(50))
def test_a_monitor_either_fires_or_is_taken_back(_: int) -> None:
    target, watcher = lone(), lone()
    not_back: list[Ref] = []

    def visit() -> None:
        for _ in range(20):
            ref = watcher.monitor(target.pid)
            if not watcher.demonitor(ref):
                not_back.append(ref)

    together(visit, functools.partial(target.end, "x"))

    assert [down.ref for down in watcher.mailbox] == not_back
    assert not watcher._monitors
    assert not target._watchers


@pytest.mark.usefixtures("rapid_switching")
@pytest.mark.parametrize("_", range(50))
def test_a_link_with_one_that_ends_meanwhile_is_heard_of_or_refused(_: int) -> None:
    target, linker = lone(), lone(trap_exit=True)

    together(functools.partial(linker.link, target.pid), functools.partial(target.end, "x"))

    if linker.mailbox:
        assert list(linker.mailbox) == [Exited(target.pid, NOPROC)]
        assert linker.links == []
    else:  # it hears it of its Device, as soon as it runs
        assert linker.device.receive_nowait().sender == target.device.id
