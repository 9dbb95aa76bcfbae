"""The mesh between two threads, beyond sampling: all schedules with a few preemptions.

Each scenario gives two threads a few operations on the Devices ``a`` and ``b``.
What they may lead to is told by a model (two sets and a dict) that is itself
run in all orders; every schedule of the real thing must lead to one of these:
the results of the operations, the causes of the ends, the mailboxes in order,
the links. Besides, whatever the schedule, the tables hold the links and nothing
else, what is linked afterwards fires once, and then the tables are empty.

Operations on one link are compared direction by direction. An end takes several
steps in the model too: first the Device has ended, then its listeners are told
one after the other, and each of them may be told by another thread, later.
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import inspect
import itertools
import math
import sys
import textwrap
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from backplane import (
    Cancelled,
    Device,
    DeviceDownError,
    DeviceID,
    Dropped,
    Fault,
    Killed,
    LinkDownError,
    LinkMode,
    Message,
    Shutdown,
    _device,
    _line,
    _plugboard,
)
from backplane._loop import _seat

# The one place where tests look inside: the table of a Device is the subject here.
from backplane._plugboard import Plugboard, State

if TYPE_CHECKING:  # mypy knows the tests as single files, pytest as parts of packages
    from interleave import (
        Duet,
        Job,
        Schedule,
        Steps,
        code_of,
        every_opcode,
        interruptions,
        place_of,
        schedules,
        shared_steps,
    )
else:
    from .interleave import (
        Duet,
        Job,
        Schedule,
        Steps,
        code_of,
        every_opcode,
        interruptions,
        place_of,
        schedules,
        shared_steps,
    )

MONITOR, NOTIFY, PEER = LinkMode.MONITOR, LinkMode.NOTIFY, LinkMode.PEER
DROPPED = Dropped()
NAMES = ("a", "b", "o")  # two to work on, and one that looks on
WATCHED = (_plugboard, _line, _device)
# What changes in a plugboard beside its table. (Its number and its name never do.)
CHANGING = tuple(slot for slot in Plugboard.__slots__ if slot not in ("serial", "name"))
SHARED = shared_steps(*CHANGING)

pytestmark = pytest.mark.skipif(
    not getattr(sys, "_is_gil_enabled", lambda: True)(),
    reason="without a GIL, threads take no turns, and finalizers run later: see test_threads",
)


# -- the model -------------------------------------------------------------------------


@dataclass
class World:
    """What a correct mesh is in, between two steps."""

    ends: dict[str, str] = field(default_factory=dict)
    """How those that ended did."""
    links: set[tuple[str, str]] = field(default_factory=set)
    """The second hears the first."""
    told: set[tuple[str, str]] = field(default_factory=set)
    """The second heard the first: it never does twice."""
    mail: dict[str, tuple[str, ...]] = field(default_factory=lambda: dict.fromkeys(NAMES, ()))
    owners: set[str] = field(default_factory=set)
    hands: tuple[frozenset[object], frozenset[object]] = (frozenset(), frozenset())
    """What each thread keeps in mind from one step of an operation to the next."""
    results: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())

    def copy(self) -> World:
        return dataclasses.replace(
            self,
            ends=dict(self.ends),
            links=set(self.links),
            told=set(self.told),
            mail=dict(self.mail),
            owners=set(self.owners),
        )

    def key(self) -> object:
        return (
            frozenset(self.ends.items()),
            frozenset(self.links),
            frozenset(self.told),
            tuple(self.mail.values()),
            frozenset(self.owners),
            self.hands,
            self.results,
        )

    def keep(self, lane: int, thing: object) -> None:
        hands = list(self.hands)
        hands[lane] |= {thing}
        self.hands = (hands[0], hands[1])

    def let_go(self, lane: int, thing: object) -> bool:
        hands = list(self.hands)
        hands[lane] -= {thing}
        kept = hands[lane] != self.hands[lane]
        self.hands = (hands[0], hands[1])
        return kept

    def answer(self, lane: int, result: str) -> None:
        results = list(self.results)
        results[lane] += (result,)
        self.results = (results[0], results[1])

    def deliver(self, listener: str, message: str) -> None:
        if listener not in self.ends:
            self.mail[listener] += (message,)

    def outcome(self) -> Outcome:
        alive = [name for name in NAMES if name not in self.ends]
        return Outcome(
            results=self.results,
            ends=tuple(sorted(self.ends.items())),
            mail=tuple((name, self.mail[name]) for name in alive),
            links=tuple(sorted(self.links)),
        )


@dataclass(frozen=True)
class Outcome:
    """What can be seen when both threads have come to their ends."""

    results: tuple[tuple[str, ...], tuple[str, ...]]
    ends: tuple[tuple[str, str], ...]
    mail: tuple[tuple[str, tuple[str, ...]], ...]
    links: tuple[tuple[str, str], ...]


Step = Callable[[World, int], None]
"""Something that happens at once, in one of the two threads."""


# -- the real thing --------------------------------------------------------------------


class Stage:
    """Three Devices, and what the two threads got from them."""

    def __init__(self) -> None:
        self.devices = {name: Device(name) for name in NAMES}
        self.lines = {name: device.line() for name, device in self.devices.items()}
        self.boards = {name: device._board for name, device in self.devices.items()}
        self.names = {line.id: name for name, line in self.lines.items()}
        self.waiters: list[tuple[str, Waiter]] = []
        self.results: tuple[list[str], list[str]] = ([], [])

    def __repr__(self) -> str:
        return f"the threads got {self.results}, ended {self.ends()}, linked {self.links()}"

    def perform(self, operations: tuple[Operation, ...], lane: int) -> None:
        """Do all this, in the calling thread."""
        answers = self.results[lane]
        for operation in operations:
            answer = operation.perform(self)
            if answer is not None:
                answers.append(answer)

    def outcome(self) -> Outcome:
        ends = self.ends()
        return Outcome(
            results=(tuple(self.results[0]), tuple(self.results[1])),
            ends=tuple(sorted(ends.items())),
            mail=tuple((name, self.take_all(name)) for name in NAMES if name not in ends),
            links=tuple(sorted(self.links())),
        )

    def ends(self) -> dict[str, str]:
        return {
            name: cause_of(board.end)
            for name, board in self.boards.items()
            if not isinstance(board.end, State)
        }

    def links(self) -> set[tuple[str, str]]:
        """The links as the tables of the speakers have them."""
        return {
            (speaker, listener)
            for speaker in NAMES
            for listener in NAMES
            if self.boards[listener] in self.boards[speaker]
        }

    def take_all(self, name: str) -> tuple[str, ...]:
        taken = []
        while True:
            try:
                taken.append(self.text(self.devices[name].receive_nowait()))
            except anyio.WouldBlock:
                return tuple(taken)

    def text(self, message: Message) -> str:
        if isinstance(message, Shutdown):
            assert message.sender is not None
            return f"message {message.sender.serial}"
        return said(self.names[message.sender], cause_of(message.fault))

    def wake_up(self) -> None:
        """Whoever sleeps has been woken if there is something for him; send them home."""
        for name, waiter in self.waiters:
            board = self.boards[name]
            news = bool(board.inbox) or not isinstance(board.end, State)
            assert waiter.wakes or not news, f"who waits for {name} sleeps on"
            board.release()
        self.waiters.clear()

    def check_tables(self) -> None:
        """Each entry of a speaker has its note with the listener, and there is nothing else."""
        links = self.links()
        ends = self.ends()
        for name, board in self.boards.items():
            if name in ends:
                things = itertools.chain(board, board.values(), [board.inbox])
                left = [thing for thing in things if isinstance(thing, Plugboard | deque)]
                assert not left, f"{name} ended and keeps {left}"
                continue
            entries = {key for key in board if isinstance(key, Plugboard)}
            notes = {key for key in board if isinstance(key, int)}
            assert entries == {self.boards[to] for of, to in links if of == name}, name
            assert notes == {self.boards[of].serial for of, to in links if to == name}, name
            rest = len(board) - len(entries) - len(notes)
            assert rest <= 1, f"{name} has more than links and a mailbox"

    def end_all(self) -> None:
        """End who is left: each link fires once, and no table holds anything afterwards."""
        links = self.links()
        alive = [name for name in NAMES if name not in self.ends()]
        while alive:
            name = alive.pop()
            self.devices[name].disconnect()
            for other in alive:
                expected = (said(name, "None"),) if (name, other) in links else ()
                assert self.take_all(other) == expected
        self.check_tables()


class Waiter:
    """Somebody who sleeps, and counts how often he is woken."""

    def __init__(self) -> None:
        self.wakes = 0

    def wake(self) -> None:
        self.wakes += 1

    wake_soon = wake


def cause_of(end: object) -> str:
    return str(end) if end is None else type(end).__name__


def said(name: str, cause: str) -> str:
    return f"{name} ended: {cause}"


# -- the operations: on the real thing, and step by step on the model ------------------


class Operation:
    """One call, as one thread makes it."""

    def perform(self, stage: Stage) -> str | None:
        raise NotImplementedError

    def steps(self) -> list[Step]:
        raise NotImplementedError


@dataclass(frozen=True)
class Link(Operation):
    mine: str
    theirs: str
    mode: LinkMode = PEER

    def perform(self, stage: Stage) -> str:
        try:
            stage.lines[self.mine].link(stage.lines[self.theirs], self.mode)
        except DeviceDownError as error:
            return f"{stage.names[error.device]} is down, this one"
        except LinkDownError as error:
            return f"{stage.names[error.device]} is down, the other"
        return "linked"

    def steps(self) -> list[Step]:
        mine, theirs = self.mine, self.theirs

        def look(world: World, lane: int) -> None:
            if mine in world.ends:
                world.answer(lane, f"{mine} is down, this one")
                world.keep(lane, "refused")

        def look_at_other(world: World, lane: int) -> None:
            if theirs in world.ends and "refused" not in world.hands[lane]:
                world.answer(lane, f"{theirs} is down, the other")
                world.keep(lane, "refused")

        def tell(speaker: str, listener: str, world: World, lane: int) -> None:
            """Link, although either may have ended since the look: as if it did just after."""
            if "refused" in world.hands[lane] or listener in world.ends:
                return
            if speaker not in world.ends:
                world.links.add((speaker, listener))
            elif (speaker, listener) not in world.told | world.links:
                world.told.add((speaker, listener))
                world.deliver(listener, said(speaker, world.ends[speaker]))

        def answer(world: World, lane: int) -> None:
            if not world.let_go(lane, "refused"):
                world.answer(lane, "linked")

        # The other one first: it may refuse, and then nothing is linked.
        pairs = reversed(directions(mine, theirs, self.mode))
        return [look, look_at_other, *(functools.partial(tell, *pair) for pair in pairs), answer]


@dataclass(frozen=True)
class Unlink(Operation):
    mine: str
    theirs: str
    mode: LinkMode = PEER

    def perform(self, stage: Stage) -> None:
        stage.lines[self.mine].unlink(stage.lines[self.theirs], self.mode)

    def steps(self) -> list[Step]:
        def unlink(pair: tuple[str, str], world: World, lane: int) -> None:
            world.links.discard(pair)

        pairs = directions(self.mine, self.theirs, self.mode)
        return [functools.partial(unlink, pair) for pair in pairs]


def directions(mine: str, theirs: str, mode: LinkMode) -> list[tuple[str, str]]:
    """Who tells whom."""
    return [(theirs, mine)] * (MONITOR in mode) + [(mine, theirs)] * (NOTIFY in mode)


@dataclass(frozen=True)
class End(Operation):
    name: str
    fault: Fault | None = None

    def perform(self, stage: Stage) -> None:
        if self.name in stage.devices:
            stage.devices[self.name].disconnect(self.fault)

    def steps(self) -> list[Step]:
        name = self.name

        def end(world: World, lane: int) -> None:
            if name not in world.ends:
                world.ends[name] = cause_of(self.fault)
            world.mail[name] = ()

        def choose(listener: str, world: World, lane: int) -> None:
            if (name, listener) in world.links:
                world.links.remove((name, listener))
                world.told.add((name, listener))
                world.keep(lane, (name, listener))

        def tell(listener: str, world: World, lane: int) -> None:
            if world.let_go(lane, (name, listener)):
                world.deliver(listener, said(name, world.ends[name]))

        def hear_no_more(world: World, lane: int) -> None:
            world.links -= {link for link in world.links if link[1] == name}

        steps: list[Step] = [end]
        for listener in NAMES:
            if listener != name:
                steps += functools.partial(choose, listener), functools.partial(tell, listener)
        return [*steps, hear_no_more]


@dataclass(frozen=True)
class Drop(End):
    """Lose the last reference. The Device ends by itself, as ``Dropped``."""

    fault: Fault | None = DROPPED

    def perform(self, stage: Stage) -> None:
        stage.devices.pop(self.name, None)


class Lose(Operation):
    """Leave a Device to the garbage collector, in a reference cycle."""

    def __init__(self, name: str) -> None:
        self.name = name

    def perform(self, stage: Stage) -> None:
        cycle: list[object] = [stage.devices.pop(self.name)]
        cycle.append(cycle)

    def steps(self) -> list[Step]:
        return []


@dataclass(frozen=True)
class Collect(Drop):
    """Have the garbage collector find a lost Device."""

    def perform(self, stage: Stage) -> None:
        gc.collect()


@dataclass(frozen=True)
class Send(Operation):
    name: str
    number: int

    def perform(self, stage: Stage) -> str:
        return str(stage.lines[self.name].send(Shutdown(DeviceID(self.number))))

    def steps(self) -> list[Step]:
        def send(world: World, lane: int) -> None:
            world.answer(lane, str(self.name not in world.ends))
            world.deliver(self.name, f"message {self.number}")

        return [send]


@dataclass(frozen=True)
class Receive(Operation):
    name: str

    def perform(self, stage: Stage) -> str:
        try:
            return stage.text(stage.devices[self.name].receive_nowait())
        except DeviceDownError:
            return "down"
        except anyio.WouldBlock:
            return "nothing"

    def steps(self) -> list[Step]:
        return [functools.partial(take, self.name, "nothing")]


def take(name: str, otherwise: str, world: World, lane: int) -> None:
    if name in world.ends:
        world.answer(lane, "down")
    elif world.mail[name]:
        world.answer(lane, world.mail[name][0])
        world.mail[name] = world.mail[name][1:]
    else:
        world.answer(lane, otherwise)


@dataclass(frozen=True)
class Wait(Operation):
    """What ``receive`` does, up to the point where it would sleep, or return."""

    name: str

    def perform(self, stage: Stage) -> str:
        board = stage.boards[self.name]
        waiter = Waiter()
        if not board.claim(waiter):
            return "busy"
        message = board.take()
        if message is None and board.end is State.OPEN:
            stage.waiters.append((self.name, waiter))
            return "asleep"
        board.release()
        return "down" if message is None else stage.text(message)

    def steps(self) -> list[Step]:
        name = self.name

        def claim(world: World, lane: int) -> None:
            if name in world.owners:
                world.answer(lane, "busy")
            else:
                world.owners.add(name)
                world.keep(lane, "claimed")

        def look(world: World, lane: int) -> None:
            if "claimed" in world.hands[lane]:
                take(name, "asleep", world, lane)

        def release(world: World, lane: int) -> None:
            if world.let_go(lane, "claimed") and world.results[lane][-1] != "asleep":
                world.owners.remove(name)

        return [claim, look, release]


# -- scenarios -------------------------------------------------------------------------


@dataclass(frozen=True)
class Scenario:
    """What two threads do, and what was done before."""

    one: tuple[Operation, ...]
    two: tuple[Operation, ...]
    before: tuple[Operation, ...] = ()

    def __str__(self) -> str:
        threads = " | ".join(sentence(thread) for thread in (self.one, self.two))
        return f"{sentence(self.before)}: {threads}" if self.before else threads

    def allowed(self) -> set[Outcome]:
        """All that the model may come to, run in all orders."""
        start = World()
        for operation in self.before:
            for step in operation.steps():
                step(start, 0)
        start.results = ((), ())
        plans = [[step for op in thread for step in op.steps()] for thread in (self.one, self.two)]
        seen = set()
        outcomes = set()
        rest = [(0, 0, start)]
        while rest:
            first, second, world = rest.pop()
            state = first, second, world.key()
            if state in seen:
                continue
            seen.add(state)
            if first < len(plans[0]):
                after = world.copy()
                plans[0][first](after, 0)
                rest.append((first + 1, second, after))
            if second < len(plans[1]):
                after = world.copy()
                plans[1][second](after, 1)
                rest.append((first, second + 1, after))
            if (first, second) == (len(plans[0]), len(plans[1])):
                outcomes.add(world.outcome())
        return outcomes

    def explore(self, preemptions: int, steps: Steps = SHARED) -> int:
        """Run all schedules; return how many there are.

        Raises:
            AssertionError: If one goes wrong. It tells which.
        """
        allowed = self.allowed()
        stage = Stage()
        count = 0

        def run(schedule: Schedule) -> int:
            nonlocal stage
            stage = self.set_up()
            jobs = (
                functools.partial(stage.perform, self.one, 0),
                functools.partial(stage.perform, self.two, 1),
            )
            return duet.run(jobs, schedule)

        with Duet(code_of(*WATCHED), steps) as duet:
            try:
                for _ in schedules(run, preemptions):
                    count += 1
                    self.check(stage, allowed)
            except Exception as error:
                where = "\n  ".join(duet.preemptions()) or "no preemption"
                raise AssertionError(
                    f"{self}\n  goes wrong after {count} schedules:\n  {where}\n"
                    f"  {stage!r}\n  {type(error).__name__}: {error}"
                ) from None
        return count

    def explore_collections(self) -> int:
        """Have thread two do its part in the midst of thread one, once at every opcode.

        Returns:
            How many opcodes there were.

        Raises:
            AssertionError: If it goes wrong. It tells where.
        """
        allowed = self.allowed()
        stage = Stage()
        last = None

        def prepare() -> Job:
            nonlocal stage
            stage = self.set_up()
            return functools.partial(stage.perform, self.one, 0)

        def interrupt() -> None:
            stage.perform(self.two, 1)

        count = 0
        try:
            for where in interruptions(code_of(*WATCHED), every_opcode, prepare, interrupt):
                count += 1
                last = where
                self.check(stage, allowed)
        except Exception as error:
            raise AssertionError(
                f"{self}\n  goes wrong after {count} opcodes, the last "
                f"{'none' if last is None else place_of(*last)}\n"
                f"  {stage!r}\n  {type(error).__name__}: {error}"
            ) from None
        return count

    def set_up(self) -> Stage:
        stage = Stage()
        stage.perform(self.before, 0)
        stage.results = ([], [])
        return stage

    def check(self, stage: Stage, allowed: set[Outcome]) -> None:
        stage.wake_up()
        stage.check_tables()
        outcome = stage.outcome()
        if outcome not in allowed:
            raise AssertionError(f"the model never comes to {outcome}")
        stage.end_all()


def sentence(operations: tuple[Operation, ...]) -> str:
    return "; ".join(map(phrase, operations))


def phrase(operation: Operation) -> str:
    match operation:
        case Link(mine, theirs, mode):
            return f"{mine}.link({theirs}, {mode.name})"
        case Unlink(mine, theirs, mode):
            return f"{mine}.unlink({theirs}, {mode.name})"
        case Collect(name):
            return f"collect {name}"
        case Drop(name):
            return f"drop {name}"
        case Lose():
            return f"lose {operation.name}"
        case End(name, fault):
            return f"{name}.disconnect({cause_of(fault)})"
        case Send(name, number):
            return f"{name}.send({number})"
        case Receive(name):
            return f"{name}.receive"
        case Wait(name):
            return f"wait for {name}"
        case _:
            raise NotImplementedError(operation)


@functools.cache
def explored(scenario: Scenario, preemptions: int) -> int:
    """Explore a scenario with the code as it is, once."""
    return scenario.explore(preemptions)


def report(scenario: object, count: int, what: str = "schedules") -> None:
    """Shown by ``pytest -s``."""
    print(f"\n{scenario}: {count} {what}")  # noqa: T201


def named(scenarios: list[Scenario]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("scenario", scenarios, ids=str)


@pytest.fixture
def no_automatic_collection() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


# -- what holds in every schedule ------------------------------------------------------

CALLS: list[Operation] = [
    Link("a", "b", MONITOR),
    Link("a", "b", PEER),
    Link("b", "a", PEER),
    Unlink("a", "b", MONITOR),
    Unlink("a", "b", PEER),
    End("a", Cancelled()),
    End("b", Killed()),
    Drop("b"),
]
LINKED = Link("a", "b", PEER)
HEARD = Link("o", "b", MONITOR)


def each_with_each(operations: list[Operation], *before: Operation) -> list[Scenario]:
    return [
        Scenario((one,), (two,), before)
        for one, two in itertools.combinations_with_replacement(operations, 2)
    ]


@named(each_with_each(CALLS))
def test_two_calls_at_once_come_out_as_one_after_the_other(scenario: Scenario) -> None:
    report(scenario, explored(scenario, preemptions=2))


@named(each_with_each(CALLS, LINKED))
def test_two_calls_on_a_linked_pair_come_out_as_one_after_the_other(scenario: Scenario) -> None:
    report(scenario, explored(scenario, preemptions=2))


@pytest.mark.heavy
@named(
    [
        Scenario((End("b", Killed()),), (End("b", Cancelled()),), (HEARD, LINKED)),
        Scenario((End("b", Killed()), End("a")), (End("b"),), (LINKED,)),
        Scenario((End("b", Killed()),), (End("a", Cancelled()),), (HEARD, LINKED)),
    ]
)
def test_all_hear_the_same_cause_once_whoever_ends_a_device(scenario: Scenario) -> None:
    report(scenario, explored(scenario, preemptions=2))


@named(
    [
        Scenario((Link("a", "b", MONITOR), Unlink("a", "b", MONITOR)), (End("b", Killed()),)),
        Scenario((Link("a", "b", PEER), Unlink("a", "b", NOTIFY)), (End("b", Killed()),)),
        Scenario((Unlink("a", "b"), Link("a", "b")), (End("b", Killed()),), (LINKED,)),
        Scenario((Unlink("a", "b"), Link("a", "b")), (Drop("b"),), (LINKED,)),
        Scenario((Link("a", "b"), End("a")), (Unlink("b", "a"),)),
        Scenario((Link("a", "b", NOTIFY), End("a")), (Link("b", "a", NOTIFY), End("b"))),
        Scenario((Link("a", "b", MONITOR), End("b")), (Link("b", "a", NOTIFY), End("a"))),
        Scenario((Link("a", "b", MONITOR),), (Link("b", "a", NOTIFY), End("b"))),
        Scenario((Link("a", "b", MONITOR),), (Link("b", "a", NOTIFY), Drop("b"))),
    ]
)
def test_a_link_that_changes_while_a_device_ends_fires_at_most_once(scenario: Scenario) -> None:
    report(scenario, explored(scenario, preemptions=2))


@named(
    [
        Scenario((Send("a", 1), Send("a", 2)), (Send("a", 3), Send("a", 4))),
        Scenario((Send("a", 1), Send("a", 2)), (Receive("a"), Receive("a"))),
        Scenario((Send("a", 1), Send("a", 2)), (End("a", Killed()),)),
        Scenario((Send("a", 1), End("b", Killed())), (Send("a", 2), Receive("a")), (LINKED,)),
        Scenario((Receive("a"),), (Receive("a"),), (Send("a", 1),)),
        Scenario((Receive("a"),), (Receive("a"), Receive("a")), (Send("a", 1), Send("a", 2))),
        Scenario((Receive("a"),), (End("a"),), (Send("a", 1),)),
        Scenario((Receive("a"), Receive("a")), (End("b", Killed()),), (LINKED,)),
    ]
)
def test_no_message_is_lost_doubled_or_overtaken_by_its_sender(scenario: Scenario) -> None:
    report(scenario, explored(scenario, preemptions=2))


@named(
    [
        Scenario((Wait("a"),), (Wait("a"),)),
        Scenario((Wait("a"),), (Send("a", 1),)),
        Scenario((Wait("a"),), (Send("a", 1), Send("a", 2))),
        Scenario((Wait("a"),), (End("a"),)),
        Scenario((Wait("a"),), (Drop("a"),)),
        Scenario((Wait("a"),), (End("b", Killed()),), (LINKED,)),
        Scenario((Wait("a"),), (Wait("a"), Send("a", 2)), (Send("a", 1),)),
        Scenario((Wait("a"), Wait("a")), (Wait("a"), End("a")), (Send("a", 1),)),
    ]
)
def test_one_task_owns_a_mailbox_and_is_woken_by_what_comes(scenario: Scenario) -> None:
    report(scenario, explored(scenario, preemptions=3))


# These need three preemptions.


@named([Scenario((Unlink("a", "b", MONITOR),), (Link("a", "b", MONITOR), End("a")))])
def test_an_unlink_that_is_overtaken_by_link_and_end_leaves_nothing_behind(
    scenario: Scenario,
) -> None:
    report(scenario, explored(scenario, preemptions=3))


@pytest.mark.heavy
@named(
    [Scenario((Link("a", "b", MONITOR),), (End("b"), End("b")), (Link("a", "b", MONITOR),))],
)
def test_a_link_made_again_while_the_other_ends_twice_fires_once(scenario: Scenario) -> None:
    report(scenario, explored(scenario, preemptions=3))


@named([Scenario((Send("a", 1),), (End("a"), Receive("a")))])
def test_after_its_end_a_device_receives_nothing_even_if_it_is_being_sent(
    scenario: Scenario,
) -> None:
    report(scenario, explored(scenario, preemptions=3))


@named(
    [
        Scenario((Link("a", "b"),), (End("b", Killed()),)),
        Scenario((Link("a", "b"),), (Unlink("b", "a"),)),
        Scenario((Unlink("a", "b"),), (End("b", Killed()),), (LINKED,)),
        Scenario((End("b"),), (End("b", Killed()),), (HEARD, LINKED)),
        Scenario((Send("a", 1),), (End("a"),)),
        Scenario((Send("a", 1), Receive("a")), (Send("a", 2),)),
        Scenario((Wait("a"),), (Send("a", 1),)),
    ]
)
def test_preempting_before_every_opcode_shows_nothing_that_shared_steps_do_not(
    scenario: Scenario,
) -> None:
    report(scenario, scenario.explore(preemptions=1, steps=every_opcode))


# -- a garbage collection in the midst of a call ---------------------------------------

ALL_LINKED = (LINKED, Link("o", "a"), Link("o", "b"))
INTERRUPTED: list[tuple[Operation, ...]] = [
    (Link("a", "b", MONITOR), Unlink("a", "b", MONITOR)),
    (Link("a", "b", PEER),),
    (Link("b", "a", PEER),),
    (Unlink("a", "b", PEER),),
    (End("a", Killed()),),
    (Send("a", 2),),
    (Receive("a"), Receive("a")),
    (Wait("a"), Wait("a")),
]


@pytest.mark.usefixtures("no_automatic_collection")
@named(
    [
        Scenario(operations, (Collect("o"),), (*before, Send("a", 1), Lose("o")))
        for operations in INTERRUPTED
        for before in ((Link("o", "a"), Link("o", "b")), ALL_LINKED)
    ]
)
def test_a_linked_device_may_be_collected_before_any_opcode(scenario: Scenario) -> None:
    report(scenario, scenario.explore_collections(), "opcodes")


@pytest.mark.usefixtures("no_automatic_collection")
@named(
    [
        Scenario(operations, (Collect("b"),), (*before, Lose("b")))
        for operations in INTERRUPTED
        for before in ((), (HEARD,), ALL_LINKED)
    ]
)
def test_the_device_at_the_other_end_may_be_collected_before_any_opcode(
    scenario: Scenario,
) -> None:
    report(scenario, scenario.explore_collections(), "opcodes")


@named(
    [
        Scenario(operations, (Collect("o"),), (*ALL_LINKED, Send("a", 1), Lose("o")))
        for operations in INTERRUPTED
    ]
)
def test_a_linked_device_may_be_collected_by_any_allocation(scenario: Scenario) -> None:
    """Up to Python 3.11 that is in the midst of an opcode too."""
    allowed = scenario.allowed()
    thresholds = gc.get_threshold()

    for allocations in range(1, 60):
        stage = scenario.set_up()
        try:
            gc.set_threshold(allocations)
            stage.perform(scenario.one, 0)
        finally:
            gc.set_threshold(*thresholds)
        gc.collect()
        scenario.check(stage, allowed)


# -- waking through a loop -------------------------------------------------------------


class Sleeper(_seat.Seat):
    """A task whose loop runs a callback at a time, and that looks when it is woken."""

    def __init__(self) -> None:
        self._called = False
        self.calls: deque[Callable[[], None]] = deque()
        self.sent = 0
        self.seen = 0

    def _is_here(self) -> bool:
        return False

    def _call_soon(self, fn: Callable[[], None]) -> None:
        self.calls.append(fn)

    def _on_wake(self) -> None:
        self.seen = self.sent

    def send(self) -> None:
        self.sent += 1
        self.wake()

    def turn(self) -> None:
        while self.calls:
            self.calls.popleft()()


def explore_wakes(preemptions: int) -> int:
    """Two threads wake, of which one runs the loop, too; return the number of schedules."""
    sleeper = Sleeper()

    def wake_and_turn() -> None:
        sleeper.send()
        sleeper.turn()
        sleeper.turn()

    def run(schedule: Schedule) -> int:
        nonlocal sleeper
        sleeper = Sleeper()
        return duet.run((lambda: sleeper.send(), wake_and_turn), schedule)

    count = 0
    codes = [*code_of(_seat), Sleeper._on_wake.__code__, Sleeper.turn.__code__]
    with Duet(codes, shared_steps("_called", "seen", "sent")) as duet:
        for _ in schedules(run, preemptions):
            count += 1
            sleeper.turn()
            assert sleeper.seen == 2, f"asleep after {duet.preemptions()}"
    return count


def test_no_wake_is_lost_between_a_thread_and_the_loop() -> None:
    report("wake | wake; turn", explore_wakes(preemptions=3))


# -- the explorer itself ---------------------------------------------------------------


@dataclass(frozen=True)
class Plant:
    """A fault to put into a method, and where it must show."""

    method: str
    changes: tuple[tuple[str, str], ...]
    scenario: Scenario
    preemptions: int = 2

    def put_into(self, owner: type, module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
        method = vars(owner)[self.method]
        source = textwrap.dedent(inspect.getsource(method))
        for old, new in self.changes:
            assert source.count(old) == 1, f"{self.method} has changed: plant the fault anew"
            source = source.replace(old, new)
        source = "\n" * (method.__code__.co_firstlineno - 1) + source
        planted: dict[str, Any] = {}
        exec(compile(source, str(module.__file__), "exec"), vars(module), planted)
        monkeypatch.setattr(owner, self.method, planted[self.method])


LATE = "speaker.end is not OPEN or self.end is not OPEN"
PLANTS = {
    "listen looks before it inserts": Plant(
        "listen",
        (
            (f"if {LATE} or", "if late or"),
            ("    speaker[self] = None", f"    late = {LATE}\n    speaker[self] = None"),
        ),
        Scenario((Link("a", "b", MONITOR),), (End("b", Killed()),)),
    ),
    "listen does not see its entry taken back": Plant(
        "listen",
        ((" or self not in speaker:", ":"),),
        Scenario((Link("a", "b", MONITOR),), (Unlink("a", "b"),)),
    ),
    "pair does not look whether one has ended": Plant(
        "pair",
        (("other.end is not OPEN or self.end is not OPEN or ", ""),),
        Scenario((Link("a", "b"),), (End("b", Killed()),)),
    ),
    "pair does not see its entry taken back": Plant(
        "pair",
        ((" or self not in other:", ":"),),
        Scenario((Link("a", "b"),), (Unlink("a", "b"),)),
    ),
    "settle does not look again after it noted": Plant(
        "_settle",
        (
            (
                "        if listener in self and listener.end is OPEN:\n                return",
                "        return",
            ),
        ),
        Scenario(
            (Unlink("a", "b", MONITOR),), (Link("a", "b", MONITOR), Unlink("a", "b", MONITOR))
        ),
        preemptions=3,
    ),
    "settle does not look again after it took the note away": Plant(
        "_settle",
        (("        if listener not in self:\n                return", "        return"),),
        Scenario((Link("a", "b"),), (Unlink("a", "b"),)),
    ),
    "settle leaves the entry for a listener that ended": Plant(
        "_settle",
        (
            ("if listener.end is not OPEN:", "if False:"),
            ("if listener in self and listener.end is OPEN", "if listener in self"),
        ),
        Scenario((Link("a", "b", MONITOR),), (End("a"),)),
    ),
    "settle does not tell in the place of close": Plant(
        "_settle",
        (("self.pop(listener, _ABSENT) is None:", "self.pop(listener, None):"),),
        Scenario((Link("a", "b", MONITOR),), (Drop("b"),)),
    ),
    "close elects no cause": Plant(
        "close",
        (("self.setdefault(_END, fault)", "self[_END] = fault"),),
        Scenario((End("b", Killed()),), (End("b", Cancelled()),), (HEARD, LINKED)),
    ),
    "who has been told is not recorded": Plant(
        "_tell_end",
        (("self.setdefault(-listener.serial, message) is message", "True"),),
        Scenario((Link("a", "b", MONITOR),), (End("b", Killed()),), (LINKED,)),
    ),
    "the mailbox is not elected": Plant(
        "deliver",
        (("self.setdefault(_INBOX, deque())", "deque()"),),
        Scenario((Send("a", 1),), (Send("a", 2),)),
    ),
    "deliver does not look whether the owner ended": Plant(
        "deliver",
        (("self._forget_messages()", "pass"),),
        Scenario((Send("a", 1),), (End("a"),)),
    ),
    "take does not expect anybody to be quicker": Plant(
        "take",
        (("except IndexError", "except KeyError"),),
        Scenario((Receive("a"),), (Receive("a"),), (Send("a", 1),)),
    ),
    "the owner is not elected": Plant(
        "claim",
        (("self.setdefault(_OWNER, waiter) is not waiter", "self.waiter is not None"),),
        Scenario((Wait("a"),), (Wait("a"),)),
    ),
    "release lets others in too early": Plant(
        "release",
        (
            ("    self.waiter = None\n", ""),
            (
                "    self.pop(_OWNER, None)\n",
                "    self.pop(_OWNER, None)\n    self.waiter = None\n",
            ),
        ),
        Scenario((Wait("a"),), (Wait("a"), Send("a", 2)), (Send("a", 1),)),
    ),
}


@pytest.mark.parametrize("plant", PLANTS.values(), ids=PLANTS)
def test_the_explorer_finds(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    explored(plant.scenario, preemptions=plant.preemptions)  # right as it is

    plant.put_into(Plugboard, _plugboard, monkeypatch)

    with pytest.raises(AssertionError, match="goes wrong after") as caught:
        plant.scenario.explore(plant.preemptions)
    print(f"\n{caught.value}")  # noqa: T201


def test_the_explorer_finds_a_loop_that_forgets_wakes(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(self: _seat.Seat) -> None:
        self._on_wake()
        self._called = False

    planted = answer.__code__.replace(co_filename=str(_seat.__file__))
    monkeypatch.setattr(_seat.Seat, "_answer", FunctionType(planted, {}))

    with pytest.raises(AssertionError, match="asleep"):
        explore_wakes(preemptions=3)


class Cell:
    """A number that two threads add to."""

    def __init__(self) -> None:
        self.number = 0

    def add(self) -> None:
        self.number = self.number + 1


def add_at_once(steps: Steps, preemptions: int) -> tuple[int, list[Schedule], list[int]]:
    """How many steps an addition takes, all schedules of two, and what comes out in each."""
    cell = Cell()
    results = []

    def run(schedule: Schedule) -> int:
        nonlocal cell
        cell = Cell()
        return duet.run((cell.add, cell.add), schedule)

    tried = []
    with Duet([Cell.add.__code__], steps) as duet:
        length = run(Schedule(0))
        for schedule in schedules(run, preemptions):
            tried.append(schedule)
            results.append(cell.number)
    return length, tried, results


def test_one_preemption_loses_an_update() -> None:
    assert set(add_at_once(shared_steps("number"), preemptions=0)[2]) == {2}
    assert set(add_at_once(shared_steps("number"), preemptions=1)[2]) == {1, 2}


@pytest.mark.parametrize("steps", [shared_steps("number"), every_opcode])
def test_each_schedule_is_tried_once(steps: Steps) -> None:
    length, tried, _ = add_at_once(steps, preemptions=3)

    # The first thread can be preempted before each step but its first; twice, in order.
    places = length - 1
    expected = 1 + places + places**2 + places * math.comb(places, 2)
    assert length >= 2
    assert len(tried) == len(set(tried)) == 2 * expected


def test_a_fault_in_a_thread_comes_out() -> None:
    def fail() -> None:
        raise ZeroDivisionError

    with Duet([], every_opcode) as duet, pytest.raises(ZeroDivisionError):
        duet.run((lambda: None, fail), Schedule(0))
