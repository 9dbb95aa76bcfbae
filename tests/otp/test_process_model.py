"""Whatever processes do to each other, they end and hear as a naive model of Erlang says."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backplane import DeviceID, testing
from backplane.otp import (
    KILL,
    KILLED,
    NOPROC,
    NORMAL,
    SHUTDOWN,
    Down,
    Exit,
    Exited,
    NoProcessError,
    Pid,
    Ref,
    Scope,
    Stopped,
    current_process,
)

MOST = 50
ITSELF = -1
"""Among senders: what a process was answered by what it called."""
CRASH = ValueError("on purpose")
REASONS = [NORMAL, SHUTDOWN, Stopped("detail"), "boom", KILL]
OPERATIONS = ["spawn", "spawn", "link", "link", "unlink", "monitor", "demonitor", "flush", "exit",
    "exit", "leave", "crash", "return", "trap", "trap", "send", "send"]  # fmt: skip
Operation = tuple[str, int, int]
"""What is done, to which process, and how."""


@dataclass(eq=False)
class Modelled:
    """What a process ought to be."""

    number: int
    traps: bool
    reason: object = None
    doom: object = None
    """Why it will end once the code that runs has come to an await."""
    links: set[Modelled] = field(default_factory=set)
    watchers: dict[int, Modelled] = field(default_factory=dict)
    log: list[tuple[Any, ...]] = field(default_factory=list)
    sure: int = 0
    """How much of the log it has surely received, should it be killed now."""


class Model:
    """Erlang's rules. One that has been told to end lives until all others have come to rest."""

    def __init__(self) -> None:
        self.all: list[Modelled] = []
        self.monitors: dict[int, tuple[Modelled, Modelled]] = {}
        self.next_monitor = 0

    @property
    def living(self) -> list[Modelled]:
        return [each for each in self.all if each.reason is None]

    def spawn(self, traps: bool) -> Modelled:
        self.all.append(Modelled(len(self.all), traps))
        return self.all[-1]

    def link(self, one: Modelled, other: Modelled) -> None:
        if other.reason is None and one is not other:
            one.links.add(other)
            other.links.add(one)
        elif one is not other and one.traps:
            one.log.append((other.number, "exited", NOPROC))
        elif one is not other:
            one.log.append((ITSELF, "refused", other.number))

    def unlink(self, one: Modelled, other: Modelled) -> None:
        one.links.discard(other)
        other.links.discard(one)

    def monitor(self, one: Modelled, other: Modelled) -> int:
        number = self.next_monitor
        self.next_monitor += 1
        self.monitors[number] = one, other
        if one is other:
            return number
        if other.reason is None:
            other.watchers[number] = one
        else:
            one.log.append((other.number, "down", number, NOPROC))
        return number

    def demonitor(self, number: int, flush: bool) -> None:
        one, other = self.monitors[number]
        # Erlang tells true of a monitor of oneself; here it tells whether a Down was to come.
        active = other.watchers.pop(number, None) is not None
        if flush:
            fresh = [e for e in one.log[one.sure :] if e[1:3] != ("down", number)]
            one.log[one.sure :] = fresh
        one.log.append((ITSELF, "demonitored", number, active))

    def exit(self, one: Modelled, other: Modelled, reason: object) -> None:
        if other.reason is not None:
            return
        if reason is KILL:
            other.doom = other.doom or KILLED
        elif other.traps:
            other.log.append((one.number, "exited", reason))
        elif reason is not NORMAL or one is other:
            other.doom = other.doom or reason

    def settle(self) -> None:
        """All that are to end do, and tell, until nobody is left who ends."""
        while doomed := [each for each in self.living if each.doom is not None]:
            for each in doomed:
                self.end(each)
        for each in self.living:
            each.sure = len(each.log)

    def end(self, one: Modelled) -> None:
        reason = one.reason = one.doom
        for peer in one.links:
            peer.links.discard(one)
            if peer.doom is None and peer.traps:
                peer.log.append((one.number, "exited", reason))
            elif peer.doom is None and reason is not NORMAL:
                peer.doom = reason
        for number, watcher in one.watchers.items():
            if watcher.reason is None:
                watcher.log.append((one.number, "down", number, reason))
        one.links.clear()
        one.watchers.clear()


class Real:
    """The processes themselves. Each does what it is sent, in its own code."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.pids: list[Pid] = []
        self.logs: defaultdict[int, list[tuple[Any, ...]]] = defaultdict(list)
        self.refs: dict[int, Ref] = {}

    def number(self, pid: object) -> int:
        return self.pids.index(pid)  # type: ignore[arg-type]

    async def body(self, number: int) -> None:
        me, log = current_process(), self.logs[number]
        while True:
            match await me.receive():
                case Exited(sender=DeviceID()):
                    return  # the scope is being left
                case Exited(sender=sender, reason=reason):
                    log.append((self.number(sender), "exited", reason))
                case Down(ref=ref, process=pid, reason=reason):
                    monitor = next(n for n, each in self.refs.items() if each is ref)
                    log.append((self.number(pid), "down", monitor, reason))
                case [sender, "sent", what]:
                    log.append((sender, "sent", what))
                case deeds:
                    for deed in deeds:
                        deed()
                    if not deeds:
                        return


def raising(exc: Exception) -> None:
    raise exc


def plan(model: Model, real: Real, actor: Modelled, operation: Operation) -> Callable[[], None]:
    """Do an operation to the model, and return what does it in the process."""
    name, target, how = operation
    other = model.all[target % len(model.all)]
    reason = REASONS[how % len(REASONS)]
    me, log = actor.number, real.logs[actor.number]
    match name:
        case "spawn":
            child = model.spawn(traps=how % 2 == 0)
            linked, monitored = how % 3 == 0, how % 5 < 2
            if linked:
                model.link(actor, child)
            monitor = model.monitor(actor, child) if monitored else -1
            return functools.partial(start, real, child, linked, monitor)
        case "link":
            model.link(actor, other)

            def link() -> None:
                try:
                    current_process().link(real.pids[other.number])
                except NoProcessError:
                    log.append((ITSELF, "refused", other.number))

            return link
        case "unlink":
            model.unlink(actor, other)
            return lambda: current_process().unlink(real.pids[other.number])
        case "monitor":
            number = model.monitor(actor, other)

            def monitor_it() -> None:
                # The reference has to be known before its `Down` is looked at, which is later.
                real.refs[number] = current_process().monitor(real.pids[other.number])

            return monitor_it
        case "demonitor" | "flush":
            mine = [n for n, (owner, _) in model.monitors.items() if owner is actor]
            if not mine:
                return lambda: None
            old = mine[how % len(mine)]
            model.demonitor(old, name == "flush")

            def demonitor() -> None:
                active = current_process().demonitor(real.refs[old], flush=name == "flush")
                log.append((ITSELF, "demonitored", old, active))

            return demonitor
        case "exit":
            model.exit(actor, other, reason)
            return lambda: real.pids[other.number].exit(reason)
        case "leave":
            actor.doom = reason
            return lambda: raising(Exit(reason))
        case "crash":
            actor.doom = CRASH
            return lambda: raising(CRASH)
        case "trap":
            actor.traps = how % 2 == 0

            def trap() -> None:
                current_process().trap_exit = how % 2 == 0

            return trap
        case _:
            if other.reason is None:
                other.log.append((me, "sent", how))
            return lambda: assert_sent(real.pids[other.number], (me, "sent", how))


def start(real: Real, child: Modelled, linked: bool, monitor: int) -> None:
    spawn: Callable[..., Any] = functools.partial(
        real.scope.spawn if monitor < 0 else real.scope.spawn_monitor,
        link=linked,
        trap_exit=child.traps,
    )
    if monitor < 0:
        pid = spawn(real.body, child.number)
    else:
        pid, real.refs[monitor] = spawn(real.body, child.number)
    real.pids.append(pid)


def assert_sent(pid: Pid, message: object) -> None:
    assert pid.send(message) is pid.alive


def by_sender(log: list[tuple[Any, ...]]) -> dict[int, list[tuple[Any, ...]]]:
    found: defaultdict[int, list[tuple[Any, ...]]] = defaultdict(list)
    for entry in log:
        found[entry[0]].append(entry[1:])
    return found


def check(model: Model, real: Real) -> None:
    for each in model.all:
        number = each.number
        assert real.pids[number].reason == each.reason, f"process {number}"
        heard, expected = by_sender(real.logs[number]), by_sender(each.log)
        if each.reason is None:
            assert heard == expected, f"process {number}"
            links = {real.pids[peer.number] for peer in each.links}
            assert set(real.pids[number]._process.links) == links
        sure = by_sender(each.log[: each.sure])
        for sender, entries in heard.items():
            # One that was told to end may have come to hear a little of what came just before.
            assert entries == expected[sender][: len(entries)]
            assert len(entries) >= len(sure[sender])


async def scenario(batches: list[tuple[int, list[Operation]]]) -> None:
    model = Model()
    async with Scope() as scope:
        real = Real(scope)
        for who, operations in batches:
            if not model.living:
                start_first(model, real)
            actor = model.living[who % len(model.living)]
            deeds: list[Callable[[], None]] = []
            for operation in operations:
                doomed = any(each.doom is not None for each in model.living)
                if operation[0] == "spawn" and len(model.all) >= MOST:
                    continue
                if doomed and operation[0] in {"exit", "leave", "crash", "return"}:
                    continue  # who hears of two ends, and dies of the first, is not determined
                if operation[0] == "return":
                    actor.doom = NORMAL
                    break
                deeds.append(plan(model, real, actor, operation))
                if actor.doom is not None:
                    break
            pid = real.pids[actor.number]
            assert pid.send(deeds)
            if actor.doom is NORMAL and deeds:
                pid.send([])
            model.settle()
            await anyio.sleep(1)
            check(model, real)
        living = [real.pids[each.number] for each in model.living]
    assert all(pid.reason in {SHUTDOWN, NORMAL} for pid in living)


def start_first(model: Model, real: Real) -> None:
    start(real, model.spawn(traps=True), False, -1)
    start(real, model.spawn(traps=False), False, -1)


numbers = st.integers(0, 60)
operations = st.tuples(st.sampled_from(OPERATIONS), numbers, numbers)
batches_of = st.lists(st.tuples(numbers, st.lists(operations, min_size=1, max_size=4)), max_size=40)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@settings(max_examples=min(500, settings().max_examples))  # each is a run of a loop
@given(batches=batches_of)
def test_processes_end_and_hear_as_the_model_says(
    backend: str, batches: list[tuple[int, list[Operation]]]
) -> None:
    testing.run(scenario, batches, backend=backend)
