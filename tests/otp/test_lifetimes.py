"""What processes hold, and that nothing of it outlives them; with thousands of them too."""

from __future__ import annotations

import gc
import math
import time
import weakref
from collections.abc import Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from backplane import Device
from backplane.otp import (
    KILL,
    KILLED,
    NOPROC,
    NORMAL,
    SHUTDOWN,
    Alias,
    Down,
    Exit,
    Exited,
    GenServer,
    Groups,
    InitError,
    Pid,
    Process,
    Registry,
    Scope,
    Stopped,
    Timer,
    alias,
    call,
    current_process,
    register,
    send_after,
    spawn,
    spawn_link,
    spawn_monitor,
    start,
    whereis,
)
from backplane.otp._ledger import AlreadyRegisteredError

pytestmark = pytest.mark.anyio
virtual = pytest.mark.parametrize(
    "anyio_backend", ["virtual asyncio", "virtual trio"], indirect=True
)


async def forever() -> None:
    await anyio.sleep(math.inf)


async def raising(reason: object) -> None:
    raise Exit(reason)


# All is released before anybody hears.


class Holder:
    """What a process takes hold of, and whether anything of it is left."""

    def __init__(self, groups: Groups, registry: Registry[Any, Any]) -> None:
        self._groups = groups
        self._registry = registry
        self._kept: list[Any] = []

    async def __call__(self, seconds: float, reason: object) -> None:
        me = current_process()
        register("holder")
        self._registry.register("key")
        self._registry.subscribe()
        self._groups.join("group")
        self._groups.monitor_all()
        self._kept.extend([alias(), send_after(1000, me.pid, "ring"), me.pid])
        await anyio.sleep(seconds)
        raise Exit(reason)

    def left(self) -> list[object]:
        """What is still held."""
        its_alias, timer, pid = self._kept
        assert isinstance(its_alias, Alias)
        assert isinstance(timer, Timer)
        return [
            *filter(None, [whereis("holder"), pid.alive, its_alias.active, timer.active]),
            *self._registry.select(),
            *self._groups.members("group"),
            *self._registry._ledger._holders,
            *self._groups._ledger._holders,
        ]


@virtual
@pytest.mark.parametrize("reason", [NORMAL, SHUTDOWN, KILL, "boom"], ids=repr)
@pytest.mark.parametrize("news", ["a monitor", "a link", "a wait", "a message sent later"])
async def test_all_is_released_before_anybody_hears_of_the_end(news: str, reason: object) -> None:
    holder = Holder(Groups(), Registry())
    found: list[object] = []

    async def observer() -> None:
        me = current_process()
        me.trap_exit = True
        pid, _ = spawn_monitor(holder, math.inf if reason is KILL else 5, reason, link=True)
        await anyio.sleep(1)
        assert holder.left()
        if reason is KILL:
            pid.exit(KILL)
        match news:
            case "a monitor":
                await me.receive(Down)
            case "a link":
                await me.receive(Exited)
            case "a wait":
                await pid.wait()
            case _:
                while pid.send("are you there?"):
                    await anyio.sleep(1)
        found.append(holder.left())
        register("holder")  # so it can be taken at once

    with Registry():
        async with Scope() as scope:
            assert await scope.spawn(observer).wait() is NORMAL

    assert found == [[]]


@virtual
async def test_what_a_dying_process_takes_hold_of_is_released_too() -> None:
    groups, registry, kept = Groups(), Registry[str, None](), list[Any]()

    async def tenacious() -> None:
        me = current_process()
        try:
            await forever()
        finally:
            registry.register("late")
            groups.join("late")
            kept.extend([alias(), send_after(1000, me.pid, "ring"), me.monitor(watched)])

    async with Scope() as scope:
        watched = scope.spawn(forever)
        pid = scope.spawn(tenacious)
        await anyio.sleep(1)
        pid.exit("boom")
        assert await pid.wait() == "boom"

        assert registry.select() == []
        assert groups.which_groups() == []
        assert not kept[0].active
        assert not kept[1].active
        assert not watched._process._watchers


# Names and monitors of those that come and go.


@virtual
async def test_a_monitor_by_name_stays_with_the_process_that_had_it() -> None:
    async def watcher() -> None:
        me = current_process()
        first, second = spawn(forever), spawn(forever)
        registry.register("name", pid=first)
        ref = me.monitor(registry.via("name"))
        registry.unregister("name", first)
        registry.register("name", pid=second)

        second.exit("not watched")
        await anyio.sleep(1)
        assert not me.mailbox
        first.exit("watched")
        assert await me.receive() == Down(ref, registry.via("name"), "watched")

    registry = Registry[str, None]()
    async with Scope() as scope:
        assert await scope.spawn(watcher).wait() is NORMAL


@virtual
async def test_only_the_process_that_monitors_can_end_the_monitor() -> None:
    async def watcher(scope: Scope) -> None:
        me, pid = current_process(), spawn(forever)
        ref = me.monitor(pid)

        async def stranger() -> None:
            assert not current_process().demonitor(ref, flush=True)

        assert await scope.spawn(stranger).wait() is NORMAL
        pid.exit("x")
        assert await me.receive() == Down(ref, pid, "x")

    async with Scope() as scope:
        assert await scope.spawn(watcher, scope).wait() is NORMAL


@virtual
async def test_a_reason_of_a_dead_process_is_for_those_that_wait_not_for_new_monitors() -> None:
    async def late() -> None:
        me = current_process()
        pid = spawn(raising, "the true reason")
        assert await pid.wait() == "the true reason"
        ref = me.monitor(pid)
        assert await me.receive() == Down(ref, pid, NOPROC)

    async with Scope() as scope:
        assert await scope.spawn(late).wait() is NORMAL


@virtual
async def test_one_that_ends_itself_as_by_a_kill_can_be_trapped_under_that_name() -> None:
    async def trapping() -> None:
        pid = spawn_link(raising, KILL)
        assert await current_process().receive() == Exited(pid, KILL)

    async def other() -> None:
        spawn_link(raising, KILL)
        await forever()

    async with Scope() as scope:
        assert await scope.spawn(trapping, trap_exit=True).wait() is NORMAL
        assert await scope.spawn(other).wait() is KILL


@virtual
async def test_signals_to_the_dead_do_nothing() -> None:
    async def main() -> None:
        me, pid = current_process(), spawn(raising, "x")
        await pid.wait()

        pid.exit("y")
        pid.exit(KILL)
        pid.shutdown()
        pid.drain()
        me.unlink(pid)

        assert not pid.send("hello")
        assert not await pid.wait_send("hello")
        assert pid.reason == "x"
        assert not me.mailbox

    async with Scope() as scope:
        assert await scope.spawn(main).wait() is NORMAL


@virtual
async def test_one_that_is_started_with_a_link_by_a_dying_process_goes_with_it() -> None:
    started: list[Pid] = []

    async def parent() -> None:
        try:
            await forever()
        finally:
            started.append(spawn_link(forever))
            started.append(spawn(forever))

    async with Scope() as scope:
        pid = scope.spawn(parent)
        await anyio.sleep(1)
        pid.exit("boom")
        await anyio.sleep(1)

        assert [each.reason for each in started] == ["boom", None]


@virtual
@pytest.mark.parametrize("reason", ["boom", SHUTDOWN], ids=repr)
async def test_a_ring_of_links_ends_as_one_and_each_for_that_reason(reason: object) -> None:
    async def link_with(pids: list[Pid]) -> None:
        await anyio.sleep(1)
        for pid in pids:
            current_process().link(pid)
        await forever()

    async with Scope() as scope:
        others: list[list[Pid]] = [[] for _ in range(5)]
        pids = [scope.spawn(link_with, each) for each in others]
        for number, each in enumerate(others):
            each.extend([pids[number - 1], pids[number - 2]])
        await anyio.sleep(2)
        pids[2].exit(reason)
        await anyio.sleep(1)

        assert [pid.reason for pid in pids] == [reason] * 5


def test_the_identity_of_a_process_is_never_used_again() -> None:
    seen = set()
    for _ in range(1000):
        process = Process(Device())
        seen.add(process.pid.id)
        process.end(NORMAL)
        del process

    assert len(seen) == 1000


# Several that start the same thing.


class Worker(GenServer):
    """Takes its time to start."""

    async def init(self, started: list[Pid]) -> None:
        started.append(self.process.pid)
        await anyio.sleep(1)

    def handle_call(self, message: Any, from_: Any) -> Any:
        return self.process.pid


@virtual
async def test_of_many_that_start_one_by_its_name_all_get_the_same() -> None:
    started: list[Pid] = []
    found: list[Pid] = []
    refused: list[Any] = []

    async def find_or_start() -> None:
        try:
            await start(Worker, started, name="worker")
        except InitError as error:
            refused.append(error.reason)
        found.append(await call("worker", "who are you?"))

    with Registry():
        async with Scope(), anyio.create_task_group() as tg:
            for _ in range(10):
                tg.start_soon(find_or_start)

    assert len(started) == 1
    assert found == started * 10
    assert {type(reason) for reason in refused} == {AlreadyRegisteredError}
    assert [reason.pid for reason in refused] == started * 9


# Many.


@virtual
async def test_a_long_chain_of_links_ends_as_one() -> None:
    many = 1500  # more than the interpreter's stack holds
    pids: list[Pid] = []

    async def link_with(pid: Pid | None) -> None:
        if pid is not None:
            current_process().link(pid)
        await forever()

    async with Scope() as scope:
        for _ in range(many):
            pids.append(scope.spawn(link_with, pids[-1] if pids else None))
        await anyio.sleep(1)
        pids[0].exit("boom")
        await pids[-1].wait()

        assert {pid.reason for pid in pids} == {"boom"}


@virtual
async def test_a_long_chain_of_monitors_is_told_step_by_step() -> None:
    many = 1500

    async def watch(pid: Pid | None) -> None:
        if pid is None:
            await forever()
        else:
            current_process().monitor(pid)
            raise Exit((await current_process().receive(Down)).reason)

    async with Scope() as scope:
        pids: list[Pid] = []
        for _ in range(many):
            pids.append(scope.spawn(watch, pids[-1] if pids else None))
        await anyio.sleep(1)
        pids[0].exit(KILL)

        assert await pids[-1].wait() is KILLED


@virtual
async def test_one_with_a_very_long_mailbox_is_killed_at_once() -> None:
    handled: list[object] = []

    async def slow() -> None:
        await anyio.sleep(10)
        while True:
            handled.append(await current_process().receive())

    async with Scope() as scope:
        pid = scope.spawn(slow)
        for number in range(200_000):
            pid.send(number)
        await anyio.sleep(1)
        pid.exit(KILL)

        assert await pid.wait() is KILLED
        assert anyio.current_time() == 1
        assert not pid._process.mailbox
    assert handled == []


async def visit(hub: Pid, groups: Groups, registry: Registry[Any, Any], number: int) -> None:
    """Have to do with another process in all ways, and end."""
    me = current_process()
    me.link(hub)
    me.monitor(hub)
    hub._process.monitor(me.pid)
    groups.join("all")
    groups.join(number)
    registry.register(number)
    send_after(1000, hub, "late")
    hub.send(alias())
    if number % 2:
        raise Exit(Stopped(number))


@virtual
async def test_a_process_that_many_had_to_do_with_is_afterwards_as_it_was() -> None:
    groups, registry = Groups(), Registry[int, None]()
    kept: list[weakref.ref[Process]] = []

    async def hub() -> None:
        me = current_process()
        while await me.receive() != "end":
            pass
        assert (me._links, me._monitors, me._watchers) == ({}, {}, {})
        assert me._at_end == {}

    async with Scope() as scope:
        pid = scope.spawn(hub, trap_exit=True)
        for number in range(1000):
            visitor = scope.spawn(visit, pid, groups, registry, number)
            kept.append(weakref.ref(visitor._process))
            await visitor.wait()
            del visitor
        assert scope.processes == [pid]
        pid.send("end")

        assert await pid.wait() is NORMAL
    assert groups.which_groups() == []
    assert registry.select() == []
    for _ in range(10):  # on trio a timer that is cancelled is a task that has to end first
        await anyio.lowlevel.checkpoint()
    gc.collect()
    assert [number for number, each in enumerate(kept) if each() is not None] == []


@pytest.mark.parametrize("make", [Groups, Registry])
def test_the_end_of_a_process_does_not_look_at_what_others_have(
    make: Callable[[], Groups | Registry[Any, Any]],
) -> None:
    def seconds(others: int) -> float:
        """How long an end takes while others hold so many keys."""
        table = make()
        add = table.join if isinstance(table, Groups) else table.register
        kept = [Process(Device()) for _ in range(others)]
        for number, process in enumerate(kept):
            add(number, pid=process.pid)
        taken = []
        for number in range(30):
            one = Process(Device())
            add(-1 - number, pid=one.pid)
            begun = time.thread_time()  # whatever else the machine does meanwhile
            one.end(NORMAL)
            taken.append(time.thread_time() - begun)
        return min(taken)

    assert seconds(20_000) < 10 * seconds(20)
