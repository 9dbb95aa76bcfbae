"""Outposts between two threads: what their makers are told in every schedule ends in the truth.

As in ``test_interleavings``, two threads do something each, and all schedules with
a few preemptions are run. The maker of the outpost keeps book from the events, as a
bridge does; in the end its book must agree with the table of the Device.
"""

from __future__ import annotations

import functools
import itertools
import sys
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from backplane import Device, DeviceID, Killed, LinkError, LinkMode, _line, _plugboard
from backplane import _outpost as _outpost_module
from backplane.lowlevel import Heard, Listening, Outpost, OutpostEvent, Unlistening

if TYPE_CHECKING:  # mypy knows the tests as single files, pytest as parts of packages
    from interleave import Duet, Schedule, code_of, schedules, shared_steps
else:
    from .interleave import Duet, Schedule, code_of, schedules, shared_steps

pytestmark = pytest.mark.skipif(
    not getattr(sys, "_is_gil_enabled", lambda: True)(),
    reason="without a GIL, threads take no turns",
)
SHARED = shared_steps("end", "inbox", "waiter", "events")


class Quiet:
    """A waiter for a test that looks by itself."""

    def wake(self) -> None:
        pass

    wake_soon = wake


class Stage:
    """A Device, an outpost, and the book of the outpost's maker."""

    def __init__(self) -> None:
        self.events: deque[OutpostEvent] = deque()
        self.device = Device()
        self.outpost, self.line = Outpost.open(DeviceID(5, 7), None, self.events, Quiet())
        self.listens = False
        """What the maker of the outpost believes."""
        self.heard = 0
        self.told: list[OutpostEvent] = []

    def take_in(self) -> None:
        """Look at what has happened, as the one who keeps the way to the far Device."""
        while self.events:
            event = self.events.popleft()
            self.told.append(event)
            match event:
                case Listening():
                    self.listens = True
                case Unlistening():
                    self.listens = False
                case Heard():
                    self.listens = False
                    self.heard += 1
                case _:
                    raise AssertionError(event)

    def check(self) -> None:
        self.take_in()
        if not self.line.connected:
            return
        linked = self.line._board in self.device._board
        assert self.listens is linked
        assert self.heard <= 1
        assert not (linked and not self.device.connected)
        notes = [key for key in self.line._board if type(key) is int and key > 0]
        assert notes == [self.device.id.serial] * linked


Operation = Callable[[Stage], object]


def link(stage: Stage) -> None:
    try:
        stage.device.link(stage.line, LinkMode.NOTIFY)
    except LinkError:
        pass


def unlink(stage: Stage) -> None:
    stage.device.unlink(stage.line, LinkMode.NOTIFY)


def end(stage: Stage) -> None:
    stage.device.disconnect(Killed())


def look(stage: Stage) -> None:
    stage.take_in()


def lose(stage: Stage) -> None:
    stage.outpost.disconnect(None)


OPERATIONS: list[Operation] = [link, unlink, end, look, lose]
LOOK = (look,)
ONES: list[tuple[Operation, ...]] = [(one,) for one in OPERATIONS]
PAIRS: list[tuple[Operation, ...]] = list(itertools.permutations([link, unlink, end], 2))


def explore(
    before: tuple[Operation, ...], threads: tuple[tuple[Operation, ...], ...], preemptions: int
) -> int:
    """Run all schedules; return how many there are."""
    stage = Stage()

    def play(operations: tuple[Operation, ...]) -> None:
        for operation in operations:
            operation(stage)

    def run(schedule: Schedule) -> int:
        nonlocal stage
        stage = Stage()
        play(before)
        jobs = functools.partial(play, threads[0]), functools.partial(play, threads[1])
        return duet.run(jobs, schedule)

    count = 0
    codes = [*code_of(_plugboard, _line, _outpost_module), Stage.take_in.__code__]
    with Duet(codes, SHARED) as duet:
        for _ in schedules(run, preemptions):
            count += 1
            try:
                stage.check()
            except AssertionError as error:
                where = "\n  ".join(duet.preemptions()) or "no preemption"
                raise AssertionError(
                    f"wrong after {count} schedules:\n  {where}\n  {stage.told}\n  {error}"
                ) from None
    return count


def named(operations: tuple[Operation, ...]) -> str:
    return " ".join(operation.__name__ for operation in operations) or "nothing"


@pytest.mark.parametrize("before", [(), (link,)], ids=named)
@pytest.mark.parametrize(
    "threads",
    [
        *(
            pair
            for pair in itertools.combinations_with_replacement(ONES, 2)
            if pair != (LOOK, LOOK)
        ),
        *itertools.product(ONES[:-1], PAIRS),
    ],
    ids=lambda threads: " | ".join(map(named, threads)),
)
def test_the_book_of_an_outposts_maker_ends_in_the_truth(
    before: tuple[Operation, ...], threads: tuple[tuple[Operation, ...], ...]
) -> None:
    assert explore(before, threads, preemptions=2 if len(threads[1]) == 1 else 1) >= 2
