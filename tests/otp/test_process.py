"""Processes: exit reasons, signals, links, monitors, mailboxes; by Erlang's rules."""

from __future__ import annotations

import contextvars
import functools
import math
import threading
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar

import anyio
import pytest
from anyio.lowlevel import checkpoint

from backplane import (
    Cancelled,
    Cascaded,
    Device,
    Disconnected,
    Dropped,
    Failed,
    Fault,
    Killed,
    LinkMode,
    NoConnection,
)
from backplane.otp import (
    KILL,
    KILLED,
    NOCONNECTION,
    NOPROC,
    NORMAL,
    SHUTDOWN,
    Down,
    Exit,
    Exited,
    MailboxFullError,
    NoProcessError,
    NotInProcessError,
    Overflow,
    Pid,
    Process,
    Ref,
    Registry,
    Scope,
    Stopped,
    current_process,
    register,
    spawn,
    spawn_link,
    spawn_monitor,
)
from backplane.otp._mailbox import made
from backplane.otp._reasons import fault_of, is_good, reason_of

pytestmark = pytest.mark.anyio
virtual = pytest.mark.parametrize(
    "anyio_backend", ["virtual asyncio", "virtual trio"], indirect=True
)


async def forever() -> None:
    await anyio.sleep(math.inf)


async def raising(exc: BaseException) -> None:
    raise exc


async def settle() -> None:
    await anyio.sleep(1)


async def drain() -> list[Any]:
    """All that is in the calling process's mailbox."""
    await settle()
    me, found = current_process(), []
    while True:
        try:
            found.append(await me.receive(timeout=0))
        except TimeoutError:
            return found


async def run(fn: Callable[..., Awaitable[object]], *args: object, **options: Any) -> list[Any]:
    """Run a function as a process; its results, which it appends to the list that it gets."""
    results: list[Any] = []
    async with Scope() as scope:
        reason = await scope.spawn(fn, results, *args, **options).wait()
    assert reason is NORMAL, reason
    return results


# -- the reason of an end


@virtual
@pytest.mark.parametrize(
    ("fn", "reason"),
    [
        (checkpoint, NORMAL),
        (lambda: raising(Exit("mine")), "mine"),
        (lambda: raising(Exit()), NORMAL),
        (lambda: raising(Exit(Stopped(3))), Stopped(3)),
    ],
)
async def test_a_process_ends_for_the_reason_that_it_gives(
    fn: Callable[[], Awaitable[object]], reason: object
) -> None:
    async with Scope() as scope:
        pid = scope.spawn(fn)

        assert await pid.wait() == reason
        assert pid.reason == reason
        assert await pid.wait() == reason


@virtual
async def test_the_reason_of_an_uncaught_exception_is_the_exception(
    caplog: pytest.LogCaptureFixture,
) -> None:
    error = ValueError("on purpose")
    async with Scope() as scope:
        assert await scope.spawn(raising, error).wait() is error
    assert "on purpose" in caplog.text


@virtual
async def test_the_first_cause_of_an_end_wins() -> None:
    async def slow() -> None:
        try:
            await forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(10)
            raise ValueError("in the cleanup")

    async with Scope() as scope:
        pid = scope.spawn(slow)
        await settle()
        pid.exit("first")
        await settle()
        pid.exit("second")
        pid.line().shutdown(Device().id)

        assert await pid.wait() == "first"


@virtual
async def test_one_that_swallows_its_end_and_returns_has_ended_for_the_reason_of_the_signal() -> (
    None
):
    async def stubborn() -> None:
        with anyio.CancelScope() as cancel_scope:
            try:
                await forever()
            except BaseException:
                cancel_scope.cancel()
                return

    async with Scope() as scope:
        pid = scope.spawn(stubborn)
        await settle()
        pid.exit("signal")

        assert await pid.wait() == "signal"


@virtual
async def test_a_process_lives_until_all_that_it_held_is_released() -> None:
    seen: list[object] = []

    async def slow() -> None:
        me = current_process()
        me.at_end(lambda: seen.append(("release", me.pid.alive)))
        me.at_end(seen.clear)
        me.not_at_end(seen.clear)
        try:
            await forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(10)
                seen.append(("cleanup", me.pid.alive))

    async def watcher(results: list[Any]) -> None:
        pid, _ = spawn_monitor(slow)
        await settle()
        pid.exit("x")
        await settle()
        results.append(pid.alive)
        await current_process().receive(Down)
        results.extend([*seen, pid.alive])

    assert await run(watcher) == [True, ("cleanup", True), ("release", True), False]


# -- the order of signals


@virtual
async def test_signals_of_one_sender_arrive_in_the_order_in_which_they_were_sent() -> None:
    async def target(results: list[Any]) -> None:
        sender = spawn_link(hectic, current_process().pid)
        results.extend(await drain())
        assert results[1] == results[3] == Exited(sender, "a")

    async def hectic(pid: Pid) -> None:
        pid.send(1)
        pid.exit("a")
        pid.send(2)
        pid.exit("a")
        pid.send(3)
        raise Exit("b")

    results = await run(target, trap_exit=True)

    assert [getattr(each, "reason", each) for each in results] == [1, "a", 2, "a", 3, "b"]


@virtual
async def test_signals_to_a_process_that_has_not_begun_arrive_in_order() -> None:
    async def sender(target: Callable[[], Awaitable[object]]) -> None:
        pid = spawn(target, link=True, trap_exit=True)
        pid.send(1)
        pid.exit("a")
        pid.send(2)
        raise Exit("b")

    found: list[Any] = []

    async def target() -> None:
        found.extend(await drain())

    async with Scope() as scope:
        scope.spawn(sender, target)
        await anyio.sleep(5)

    assert [getattr(each, "reason", each) for each in found] == [1, "a", 2, "b"]


@virtual
@pytest.mark.parametrize("reason", ["x", KILL])
async def test_nothing_is_received_that_was_sent_after_a_deadly_signal(reason: object) -> None:
    received = []

    async def target() -> None:
        while True:
            received.append(await current_process().receive(int))

    async with Scope() as scope:
        for _ in range(5):
            pid = scope.spawn(target)
            await settle()
            pid.send("wakes it")
            pid.exit(reason)
            pid.send(1)
            await pid.wait()

    assert received == []


@virtual
async def test_what_was_sent_before_comes_before_the_news_of_the_end() -> None:
    async def watcher(results: list[Any]) -> None:
        spawn_monitor(talker, current_process().pid)
        results.extend(await drain())

    async def talker(pid: Pid) -> None:
        for number in range(3):
            pid.send(number)

    assert [getattr(each, "reason", each) for each in await run(watcher)] == [0, 1, 2, NORMAL]


# -- links


@virtual
async def test_linking_twice_and_unlinking_once_leaves_no_link() -> None:
    async def linker(results: list[Any]) -> None:
        me = current_process()
        pid = spawn(forever)
        me.link(pid)
        me.link(pid)
        assert me.links == [pid]
        me.unlink(pid)
        assert me.links == []
        pid.exit("x")
        results.append(await drain())

    assert await run(linker) == [[]]


@virtual
async def test_a_link_with_itself_does_nothing() -> None:
    async def linker(results: list[Any]) -> None:
        me = current_process()
        me.link(me.pid)
        me.unlink(me.pid)
        results.append(me.links)

    assert await run(linker) == [[]]


@virtual
async def test_unlinking_holds_for_both_directions() -> None:
    async def short(pid: Pid) -> None:
        current_process().link(pid)
        current_process().unlink(pid)
        raise Exit("x")

    async with Scope() as scope:
        pid = scope.spawn(forever)
        await scope.spawn(short, pid).wait()
        await settle()

        assert pid.alive


@virtual
async def test_news_that_have_come_stay_after_unlinking() -> None:
    async def linker(results: list[Any]) -> None:
        pid = spawn_link(forever)
        pid.exit("x")
        await settle()
        current_process().unlink(pid)
        results.extend(await drain())
        assert results == [Exited(pid, "x")]

    assert len(await run(linker, trap_exit=True)) == 1


@virtual
async def test_a_link_with_a_dead_process_raises_or_is_told_of_if_exits_are_trapped() -> None:
    async def linker(results: list[Any]) -> None:
        me, pid = current_process(), spawn(checkpoint)
        await pid.wait()
        with pytest.raises(NoProcessError, match="cannot link: no process <Pid"):
            me.link(pid)
        me.trap_exit = True
        me.link(pid)
        results.extend([await me.receive(timeout=0) == Exited(pid, NOPROC), me.links])
        assert pid._process._links == {}

    assert await run(linker) == [True, []]


@virtual
@pytest.mark.parametrize("reason", [SHUTDOWN, Stopped(1), "boom", KILLED, KILL, ValueError("x")])
async def test_the_same_reason_goes_through_all_links(reason: object) -> None:
    async def chain(left: int) -> None:
        if left:
            spawn_link(chain, left - 1)
            await forever()
        await anyio.sleep(1)
        raise Exit(reason)

    async with Scope() as scope:
        reasons = [await each.wait() for each in [scope.spawn(chain, 20)]]
        await settle()

        assert reasons == [reason]
        assert not scope.processes


@virtual
async def test_a_normal_end_is_told_to_those_that_trap_exits_alone() -> None:
    async def linker(results: list[Any]) -> None:
        spawn_link(checkpoint)
        results.append(await drain())
        current_process().trap_exit = True
        pid = spawn_link(checkpoint)
        results.append(await drain() == [Exited(pid, NORMAL)])

    assert await run(linker) == [[], True]


@virtual
async def test_spawning_with_a_link_or_a_monitor_is_one_step() -> None:
    async def starter(results: list[Any]) -> None:
        pid = spawn_link(raising, Exit("at once"))
        results.append(await drain() == [Exited(pid, "at once")])
        other, ref = spawn_monitor(raising, Exit("at once"))
        results.append(await drain() == [Down(ref, other, "at once")])
        third, ref = spawn_monitor(raising, Exit("at once"), link=True, label="third")
        results.append(await drain() == [Exited(third, "at once"), Down(ref, third, "at once")])
        assert "third" in repr(third)

    assert await run(starter, trap_exit=True) == [True, True, True]


# -- trapping exits, and exit signals


@virtual
async def test_trapping_is_looked_at_when_the_signal_comes() -> None:
    async def target(results: list[Any]) -> None:
        me = current_process()
        me.trap_exit = True
        spawn(lambda: exit_it(me.pid))
        results.append((await me.receive()).reason)
        me.trap_exit = False
        me.pid.exit("deadly")
        me.trap_exit = True
        await forever()

    async def exit_it(pid: Pid) -> None:
        pid.exit("trapped")

    results: list[Any] = []
    async with Scope() as scope:
        assert await scope.spawn(target, results).wait() == "deadly"
    assert results == ["trapped"]


@virtual
@pytest.mark.parametrize("reason", [NORMAL, SHUTDOWN, "boom", KILL])
async def test_one_that_traps_gets_each_exit_of_a_link_as_a_message(reason: object) -> None:
    async def trapping(results: list[Any]) -> None:
        pid = spawn_link(raising, Exit(reason))
        assert await drain() == [Exited(pid, reason)]

    await run(trapping, trap_exit=True)


@virtual
async def test_a_normal_exit_signal_ends_nobody_but_its_sender() -> None:
    async def suicidal() -> None:
        current_process().pid.exit(NORMAL)
        await forever()

    async def trapping(results: list[Any]) -> None:
        me = current_process()
        me.pid.exit(NORMAL)
        results.append(await drain() == [Exited(me.pid, NORMAL)])

    async with Scope() as scope:
        other = scope.spawn(forever)
        other.exit(NORMAL)
        await settle()
        assert other.alive
        assert await scope.spawn(suicidal).wait() is NORMAL
    assert await run(trapping, trap_exit=True) == [True]


@virtual
async def test_an_exit_signal_from_no_process_has_no_sender() -> None:
    async def trapping(results: list[Any]) -> None:
        results.append(await current_process().receive())

    results: list[Any] = []
    async with Scope() as scope:
        pid = scope.spawn(trapping, results, trap_exit=True)
        pid.exit()
        assert await pid.wait() is NORMAL
        pid.exit("it is too late")
    assert results == [Exited(None, SHUTDOWN)]


@virtual
async def test_a_kill_cannot_be_trapped_and_goes_on_as_one_that_can() -> None:
    async def trapping(results: list[Any]) -> None:
        pid = spawn_link(forever, trap_exit=True)
        await settle()
        pid.exit(KILL)
        pid.exit(KILL)
        assert await drain() == [Exited(pid, KILLED)]
        assert pid.reason is KILLED

    await run(trapping, trap_exit=True)


@virtual
async def test_one_that_ends_itself_as_by_a_kill_is_not_renamed() -> None:
    async with Scope() as scope:
        assert await scope.spawn(raising, Exit(KILL)).wait() is KILL


@virtual
async def test_one_that_kills_itself_gets_no_further() -> None:
    went_on = []

    async def suicidal(awaits: bool) -> None:
        current_process().pid.exit(KILL)
        if awaits:
            await checkpoint()
            went_on.append(True)

    async with Scope() as scope:
        assert await scope.spawn(suicidal, True).wait() is KILLED
        assert await scope.spawn(suicidal, False).wait() is KILLED
        await settle()
    assert went_on == []


@virtual
@pytest.mark.parametrize("reason", [KILL, "x", SHUTDOWN])
async def test_one_that_is_ended_before_it_has_begun_runs_nothing(reason: object) -> None:
    ran = []

    async def target() -> None:
        ran.append(True)

    async with Scope() as scope:
        pid = scope.spawn(target)
        pid.exit(reason)
        pid.exit("later")

        assert await pid.wait() is (KILLED if reason is KILL else reason)
    assert ran == []


@pytest.mark.parametrize("anyio_backend", ["virtual asyncio"], indirect=True)
async def test_no_code_runs_after_a_kill() -> None:
    went_on = []

    async def stubborn() -> None:
        while True:
            try:
                await anyio.sleep(3)
                went_on.append(True)
            finally:
                continue  # noqa: B012 - as bad code does

    async with Scope() as scope:
        pid = scope.spawn(stubborn)
        await settle()
        pid.exit("swallowed")
        await settle()
        pid.exit(KILL)

        assert await pid.wait() is KILLED
        await anyio.sleep(60)
    assert went_on == []


@virtual
async def test_one_that_is_being_ended_can_be_killed() -> None:
    async def slow() -> None:
        try:
            await forever()
        finally:
            with anyio.CancelScope() as cleanup:
                cleanups.append(cleanup)
                await current_process().receive(timeout=1000)

    cleanups: list[anyio.CancelScope] = []
    async with Scope() as scope:
        pid = scope.spawn(slow)
        await settle()
        pid.exit("x")
        pid.exit(KILL)
        await anyio.sleep(5)

        assert pid.reason is KILLED


@pytest.mark.parametrize("anyio_backend", ["virtual asyncio"], indirect=True)
async def test_one_in_its_cleanup_receives_and_can_be_killed() -> None:
    found: list[object] = []

    async def slow() -> None:
        try:
            await forever()
        finally:
            found.append(await current_process().receive())
            await forever()

    async with Scope() as scope:
        pid = scope.spawn(slow)
        await settle()
        pid.exit("x")
        pid.send("in the cleanup")
        await settle()
        assert pid.alive
        pid.exit(KILL)

        assert await pid.wait() is KILLED
    assert found == ["in the cleanup"]


async def test_a_process_outside_a_job_is_ended_by_a_kill_as_by_a_signal() -> None:
    process = Process(Device())

    async def target() -> None:
        process.pid.exit(KILL)
        await forever()

    with pytest.raises(Exit, match="exit: killed"):
        await process.run(target)
    assert process.reason is KILLED


# -- monitors


@virtual
async def test_each_monitor_fires_once_with_its_own_reference() -> None:
    async def watcher(results: list[Any]) -> None:
        me, pid = current_process(), spawn(forever)
        refs = [me.monitor(pid) for _ in range(3)]
        await settle()
        pid.exit("x")
        assert await drain() == [Down(ref, pid, "x") for ref in refs]
        assert not me._monitors
        assert len(set(refs)) == 3

    await run(watcher)


@virtual
async def test_a_monitor_of_a_dead_process_does_not_know_why_it_died() -> None:
    async def watcher(results: list[Any]) -> None:
        me, pid = current_process(), spawn(raising, Exit("x"))
        await pid.wait()
        ref = me.monitor(pid)
        assert await drain() == [Down(ref, pid, NOPROC)]
        assert not me.demonitor(ref)

    await run(watcher)


@virtual
async def test_a_monitor_by_name_tells_the_name() -> None:
    async def watcher(results: list[Any]) -> None:
        pid = spawn(forever)
        register("name", pid)
        ref = current_process().monitor("name")
        pid.exit("x")
        assert await drain() == [Down(ref, "name", "x")]
        ref = current_process().monitor("name")
        assert await drain() == [Down(ref, "name", NOPROC)]

    with Registry():
        await run(watcher)


@virtual
async def test_a_monitor_of_itself_never_fires() -> None:
    async def watcher(results: list[Any]) -> None:
        me = current_process()
        ref = me.monitor(me.pid)
        assert not me.demonitor(ref, flush=True)
        assert not me.demonitor(Ref())
        me.monitor(me.pid)

    await run(watcher)


@virtual
async def test_nothing_comes_of_a_monitor_that_is_taken_back() -> None:
    async def watcher(results: list[Any]) -> None:
        me, pid = current_process(), spawn(forever)
        ref, kept = me.monitor(pid), me.monitor(pid)
        assert me.demonitor(ref)
        assert not me.demonitor(ref)
        pid.exit("x")
        assert await drain() == [Down(kept, pid, "x")]
        assert not me.demonitor(kept)

    await run(watcher)


class Odd:
    def __eq__(self, other: object) -> bool:
        raise ValueError("cannot be compared")

    __hash__ = None  # type: ignore[assignment]


@virtual
async def test_flushing_takes_out_that_down_alone_whatever_else_is_there() -> None:
    async def watcher(results: list[Any]) -> None:
        me, pid = current_process(), spawn(forever)
        odd = Odd()
        me.pid.send(odd)
        ref, kept = me.monitor(pid), me.monitor(pid)
        pid.exit("x")
        await settle()
        assert not me.demonitor(ref, flush=True)
        assert not me.demonitor(ref, flush=True)
        found = await drain()
        assert found[0] is odd
        assert found[1:] == [Down(kept, pid, "x")]

    await run(watcher)


@virtual
async def test_a_watcher_that_ends_is_forgotten() -> None:
    async def watcher(pid: Pid) -> None:
        current_process().monitor(pid)

    async with Scope() as scope:
        pid = scope.spawn(forever)
        await scope.spawn(watcher, pid).wait()

        assert pid._process._watchers == {}


# -- sending and receiving


@virtual
async def test_sending_to_the_dead_is_no_error() -> None:
    async with Scope() as scope:
        pid = scope.spawn(checkpoint)
        assert pid.send(1)
        await pid.wait()

        assert not pid.send(1)
        assert not await pid.wait_send(1)
        assert not pid._process.deliver_urgent(1)
        assert not pid._process.mailbox


@virtual
async def test_a_selective_receive_leaves_the_rest_in_order() -> None:
    async def receiver(results: list[Any]) -> None:
        me = current_process()
        for message in [1, "a", 2.0, "b", None]:
            me.pid.send(message)
        results.append(await me.receive(str))
        results.append(await me.receive((float, list)))
        results.append(await me.receive(lambda message: message == "b"))
        results.extend(await drain())

    assert await run(receiver) == ["a", 2.0, "b", 1, None]


@virtual
async def test_a_selective_receive_waits_for_what_matches() -> None:
    async def receiver(results: list[Any]) -> None:
        results.append(await current_process().receive(str))
        results.extend(await drain())

    results: list[Any] = []
    async with Scope() as scope:
        pid = scope.spawn(receiver, results)
        for message in [1, 2, "a"]:
            await settle()
            pid.send(message)
        await pid.wait()
    assert results == ["a", 1, 2]


@virtual
@pytest.mark.parametrize("timeout", [10, None])
async def test_a_message_that_comes_while_others_are_looked_at_is_not_slept_through(
    timeout: float | None,  # noqa: ASYNC109
) -> None:
    async def receiver(results: list[Any]) -> None:
        me = current_process()
        me.pid.send("first")

        def is_second(message: object) -> bool:
            if message == "first":
                me.pid.send("second")  # as from another thread
            return message == "second"

        results.append(await me.receive(is_second, timeout))
        results.append(anyio.current_time())
        results.extend(await drain())

    assert await run(receiver) == ["second", 0, "first"]


@virtual
async def test_a_match_that_raises_leaves_the_message() -> None:
    async def receiver(results: list[Any]) -> None:
        me = current_process()
        me.pid.send(0)
        with pytest.raises(ZeroDivisionError):
            await me.receive(lambda message: 1 / message)
        results.extend(await drain())

    assert await run(receiver) == [0]


@virtual
@pytest.mark.parametrize("seconds", [5, 0, -1])
async def test_a_receive_ends_at_its_timeout_and_not_before(seconds: float) -> None:
    async def receiver(results: list[Any]) -> None:
        me, start = current_process(), anyio.current_time()
        me.pid.send("does not match")
        with pytest.raises(TimeoutError):
            await me.receive(int, timeout=seconds)
        results.append(anyio.current_time() - start)

    assert await run(receiver) == [max(seconds, 0)]


@virtual
async def test_what_does_not_match_does_not_lengthen_the_timeout() -> None:
    async def receiver(results: list[Any]) -> None:
        with pytest.raises(TimeoutError):
            await current_process().receive(int, timeout=5)
        results.append(anyio.current_time())

    results: list[Any] = []
    async with Scope() as scope:
        pid = scope.spawn(receiver, results)
        start = anyio.current_time()
        for _ in range(4):
            await settle()
            pid.send("does not match")
        await pid.wait()
    assert results == [start + 5]


@virtual
async def test_an_endless_timeout_waits() -> None:
    async def receiver(results: list[Any]) -> None:
        results.append(await current_process().receive(timeout=math.inf))

    results: list[Any] = []
    async with Scope() as scope:
        pid = scope.spawn(receiver, results)
        await settle()
        pid.send(1)
        await pid.wait()
    assert results == [1]


@virtual
async def test_a_cancelled_receive_loses_nothing() -> None:
    async def receiver(results: list[Any]) -> None:
        me = current_process()
        for turns in range(6):
            with anyio.CancelScope() as cancel_scope:
                async with anyio.create_task_group() as tg:
                    tg.start_soon(cancel_after, turns, cancel_scope, me.pid)
                    results.append(await me.receive())
        results.extend(await drain())

    async def cancel_after(turns: int, cancel_scope: anyio.CancelScope, pid: Pid) -> None:
        for _ in range(turns):
            await checkpoint()
        pid.send(turns)
        if turns % 2:
            await checkpoint()
        cancel_scope.cancel()

    assert sorted(await run(receiver)) == list(range(6))


@virtual
async def test_a_second_task_cannot_receive_while_one_waits() -> None:
    async def receiver(results: list[Any]) -> None:
        me = current_process()
        async with anyio.create_task_group() as tg:
            tg.start_soon(me.receive)
            await settle()
            with pytest.raises(anyio.BusyResourceError):
                await me.receive()
            me.pid.send(1)
        me.pid.send(2)
        results.append(await me.receive())

    assert await run(receiver) == [2]


@virtual
async def test_a_process_with_an_endless_mailbox_starves_nobody() -> None:
    turns = 0

    async def busy() -> None:
        me = current_process()
        while True:
            me.pid.send(1)
            await me.receive()

    async def polling() -> None:
        while True:
            with pytest.raises(TimeoutError):
                await current_process().receive(timeout=0)

    async with Scope() as scope:
        pids = [scope.spawn(busy), scope.spawn(polling)]
        for _ in range(20):
            await checkpoint()
            turns += 1
        for pid in pids:
            pid.exit()
        assert [await pid.wait() for pid in pids] == [SHUTDOWN, SHUTDOWN]
    assert turns == 20


# -- what goes ahead


@virtual
async def test_a_request_to_shut_down_is_seen_before_all_that_waits() -> None:
    async def server(results: list[Any]) -> None:
        await anyio.sleep(5)
        results.append(await current_process().receive())
        results.append(await current_process().receive())

    results: list[Any] = []
    boss = Device()
    async with Scope() as scope:
        pid = scope.spawn(server, results, trap_exit=True)
        await settle()
        for number in range(100_000):
            pid.send(number)
        pid.line().shutdown(boss.id)
        await pid.wait()
    assert results == [Exited(boss.id, SHUTDOWN), 0]


@virtual
async def test_what_is_urgent_wakes_the_process_and_can_be_picked() -> None:
    async def receiver(results: list[Any]) -> None:
        me = current_process()
        results.append(await me.receive(str))
        results.append(await me.receive(lambda message: message == 2))
        results.append(await me.receive())

    results: list[Any] = []
    async with Scope() as scope:
        pid = scope.spawn(receiver, results)
        await settle()
        for message in [1, 2, "urgent"]:
            pid._process.deliver_urgent(message)
            await settle()
        await pid.wait()
    assert results == ["urgent", 2, 1]


# -- bounded mailboxes


@pytest.mark.parametrize("capacity", [0, -1])
async def test_a_mailbox_holds_a_message_at_least(capacity: int) -> None:
    async with Scope() as scope:
        with pytest.raises(ValueError, match="one message or more"):
            scope.spawn(forever, capacity=capacity)
        assert scope.processes == []


@virtual
@pytest.mark.parametrize(
    ("overflow", "left"),
    [(Overflow.RAISE, [0, 1]), (Overflow.DROP_NEWEST, [0, 1]), (Overflow.DROP_OLDEST, [2, 3])],
)
async def test_a_full_mailbox_does_with_one_more_as_it_was_told(
    overflow: Overflow, left: list[int]
) -> None:
    async def receiver(results: list[Any]) -> None:
        results.extend(await drain())

    results: list[Any] = []
    async with Scope() as scope:
        pid = scope.spawn(receiver, results, capacity=2, overflow=overflow)
        for number in range(4):
            if overflow is Overflow.RAISE and number >= 2:
                with pytest.raises(MailboxFullError, match="it holds 2 messages") as caught:
                    pid.send(number)
                assert caught.value.message == number
            else:
                assert pid.send(number)
        await pid.wait()
    assert results == left


@virtual
@pytest.mark.parametrize("overflow", list(Overflow))
async def test_news_of_an_end_come_into_a_full_mailbox_too(overflow: Overflow) -> None:
    async def watcher(results: list[Any]) -> None:
        me = current_process()
        me.pid.send("full")
        pid, ref = spawn_monitor(forever, link=True)
        pid.exit("x")
        await pid.wait()
        me.pid.exit("y")
        me.link(pid)
        assert await drain() == [
            "full",
            Exited(pid, "x"),
            Down(ref, pid, "x"),
            Exited(me.pid, "y"),
            Exited(pid, NOPROC),
        ]

    await run(watcher, trap_exit=True, capacity=1, overflow=overflow)


@virtual
async def test_room_is_made_by_dropping_the_oldest_that_may_be_dropped() -> None:
    async def watcher(results: list[Any]) -> None:
        me = current_process()
        pid, ref = spawn_monitor(forever, link=True)
        pid.exit("x")
        await pid.wait()
        for number in range(5):
            assert me.pid.send(number)
        results.extend(await drain())
        assert results == [Exited(pid, "x"), Down(ref, pid, "x"), 4]

    await run(watcher, trap_exit=True, capacity=3, overflow=Overflow.DROP_OLDEST)


@virtual
async def test_what_comes_last_is_dropped_if_nothing_else_in_the_mailbox_may_be() -> None:
    async def watcher(results: list[Any]) -> None:
        me = current_process()
        pid, ref = spawn_monitor(forever, link=True)
        pid.exit("x")
        await pid.wait()
        assert me.pid.send("dropped")
        results.extend(await drain())
        assert results == [Exited(pid, "x"), Down(ref, pid, "x")]

    await run(watcher, trap_exit=True, capacity=2, overflow=Overflow.DROP_OLDEST)


@virtual
async def test_what_matches_is_found_although_the_oldest_were_dropped() -> None:
    async def receiver(results: list[Any]) -> None:
        results.append(await current_process().receive(str))
        results.extend(await drain())

    results: list[Any] = []
    async with Scope() as scope:
        pid = scope.spawn(receiver, results, capacity=3, overflow=Overflow.DROP_OLDEST)
        for message in [1, 2, 3]:
            pid.send(message)
        await settle()
        pid.send("a")
        await pid.wait()
    assert results == ["a", 2, 3]


@virtual
async def test_a_message_that_is_dropped_while_it_is_looked_at_is_not_received() -> None:
    async def receiver(results: list[Any]) -> None:
        me = current_process()

        def accepts(message: int) -> bool:
            if message == 1:
                me.pid.send(4)  # drops it
            return True

        results.append(await me.receive(accepts))
        results.extend(await drain())

    results: list[Any] = []
    async with Scope() as scope:
        pid = scope.spawn(receiver, results, capacity=3, overflow=Overflow.DROP_OLDEST)
        for message in [1, 2, 3]:
            pid.send(message)
        await pid.wait()
    assert results == [2, 3, 4]


@virtual
async def test_senders_wait_for_room_and_each_keeps_its_order() -> None:
    async def receiver(results: list[Any]) -> None:
        while len(results) < 30:
            results.append(await current_process().receive())
            await anyio.sleep(1)

    async def sender(pid: Pid, name: str) -> None:
        for number in range(10):
            assert await pid.wait_send((name, number))

    results: list[Any] = []
    async with Scope() as scope:
        pid = scope.spawn(receiver, results, capacity=2)
        for name in "abc":
            scope.spawn(sender, pid, name)
        await pid.wait()
    for name in "abc":
        assert [number for each, number in results if each == name] == list(range(10))


@virtual
async def test_one_that_waits_for_room_hears_of_the_end() -> None:
    async with Scope() as scope:
        pid = scope.spawn(forever, capacity=1)
        pid.send(1)
        answers = []

        async def sender() -> None:
            answers.append(await pid.wait_send(2))

        waiting = scope.spawn(sender)
        await settle()
        pid.exit("x")
        await waiting.wait()

        assert answers == [False]


@virtual
async def test_one_that_is_cancelled_while_it_waits_for_room_has_sent_nothing() -> None:
    async with Scope() as scope:
        pid = scope.spawn(forever, capacity=1)
        pid.send(1)
        with anyio.move_on_after(5):
            await pid.wait_send(2)

        assert list(pid._process.mailbox) == [1]
        assert pid._process._room == set()


@virtual
async def test_one_that_waits_for_an_end_may_be_cancelled() -> None:
    async with Scope() as scope:
        pid = scope.spawn(forever)
        with anyio.move_on_after(5) as waited:
            await pid.wait()

        assert waited.cancelled_caught
        assert pid._process._joiners == set()


# -- processes and Devices that are none


@virtual
async def test_links_reach_devices_that_are_no_processes_and_back() -> None:
    device = Device()
    async with Scope() as scope:
        pid = scope.spawn(raising, Exit("x"))
        pid.line().link(device, LinkMode.NOTIFY)
        await pid.wait()
        message = device.receive_nowait()
        assert isinstance(message.fault, Failed)  # type: ignore[union-attr]
        assert isinstance(message.fault.exception, Exit)  # type: ignore[union-attr]

        other = scope.spawn(forever)
        other.line().link(device, LinkMode.MONITOR)
        device.disconnect(Killed())
        assert await other.wait() is KILLED


@virtual
async def test_one_that_traps_hears_of_a_device() -> None:
    device = Device()

    async def trapping(results: list[Any]) -> None:
        current_process().device.link(device, LinkMode.MONITOR)
        device.disconnect()
        results.extend(await drain())

    assert await run(trapping, trap_exit=True) == [Exited(device.id, NORMAL)]


@virtual
async def test_a_process_whose_device_is_ended_by_others_is_heard_of_by_its_fault() -> None:
    async with Scope() as scope:
        pid = scope.spawn(forever)

        async def linker(results: list[Any]) -> None:
            current_process().link(pid)
            pid._process.device.disconnect(Killed())
            await forever()

        assert await scope.spawn(linker, []).wait() is KILLED


# -- small things


async def test_outside_of_processes_there_is_no_current_one() -> None:
    with pytest.raises(NotInProcessError, match="cannot tell which process this is"):
        current_process()
    async with Scope() as scope:
        with pytest.raises(NotInProcessError, match="cannot monitor"):
            scope.spawn_monitor(forever)
        with pytest.raises(NotInProcessError, match="cannot link"):
            scope.spawn(forever, link=True)
        assert scope.processes == []


async def test_pids_are_values() -> None:
    async with Scope() as scope:
        pid, other = scope.spawn(forever), scope.spawn(forever)

        assert pid == pid._process.pid
        assert len({pid, pid._process.pid, other}) == 2
        assert pid != other
        assert pid != pid.id
        assert pid.reason is None
        assert repr(pid) == f"<Pid {pid.id.serial} forever>"
        assert repr(pid._process) == f"<Process {pid!r}>"
        pid.exit()
        await pid.wait()
        assert repr(pid) == f"<Pid {pid.id.serial} forever (ended)>"
    assert repr(Ref()).startswith("<Ref ")


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (None, NORMAL),
        (Killed(), KILLED),
        (NoConnection("node"), NOCONNECTION),
        (Cancelled(), Stopped("cancelled")),
        (Dropped(), Dropped()),
        (Failed(Exit("x")), "x"),
        (Cascaded(Device().id, Cascaded(Device().id, Killed())), KILLED),
    ],
)
def test_a_fault_of_a_device_stands_for_a_reason(fault: Fault | None, reason: object) -> None:
    assert reason_of(fault) == reason


def test_what_two_threads_need_first_is_made_once() -> None:
    class Racing:
        """Of which another thread makes the container between the two looks."""

        looks: ClassVar[list[Any]] = [None, "made by the other"]

        @property
        def _links(self) -> Any:
            return self.looks.pop(0)

    assert made(Racing(), "_links", dict) == "made by the other"  # type: ignore[arg-type]


def test_what_is_held_is_released_though_one_release_fails(
    caplog: pytest.LogCaptureFixture,
) -> None:
    process, released = Process(Device("mine")), []
    process.at_end(lambda: released.append("first"))
    process.at_end(lambda: 1 / 0)

    process.end(NORMAL)
    process.end("it has ended already")
    process.at_end(lambda: released.append("at once"))

    assert released == ["first", "at once"]
    assert "what <Pid" in caplog.text
    assert process.reason is NORMAL


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_a_process_may_be_closed_from_another_context() -> None:
    process = Process(Device())
    running = process.run(forever)
    contextvars.copy_context().run(running.send, None)
    running.close()

    assert process.reason == Stopped("cancelled")


def test_reasons_and_faults_stand_for_each_other() -> None:
    error = ValueError()
    assert [is_good(each) for each in [NORMAL, SHUTDOWN, Stopped(1), KILL, "x"]] == [True] * 3 + [
        False
    ] * 2
    for reason in [NORMAL, KILLED, error, "x"]:
        assert reason_of(fault_of(reason)) == reason
    with pytest.raises(Exit, match="exit: 'x'"):
        raise Exit("x")


# -- other threads


def in_thread(
    backend: str, fn: Callable[..., Awaitable[object]], *args: object
) -> threading.Thread:
    thread = threading.Thread(target=lambda: anyio.run(fn, *args, backend=backend))
    thread.start()
    return thread


@pytest.mark.parametrize("other", ["asyncio", "trio"])
async def test_processes_of_other_threads_link_monitor_send_and_exit(other: str) -> None:
    rounds, peers, ready = 50, list[Pid](), threading.Event()
    stop = threading.Event()

    async def echo() -> None:
        me = current_process()
        while True:
            sender, message = await me.receive()
            sender.send(message)

    async def foreign() -> None:
        async with Scope() as scope:
            for _ in range(rounds):
                peers.append(scope.spawn(echo))
            ready.set()
            await anyio.to_thread.run_sync(stop.wait)

    async def visitor(pid: Pid, reason: object, results: list[Any]) -> None:
        me = current_process()
        ref, spare = me.monitor(pid), me.monitor(pid)
        me.link(pid)
        pid.send((me.pid, "hello"))
        results.append(await me.receive())
        assert me.demonitor(spare, flush=True)
        pid.exit(reason)
        end = KILLED if reason is KILL else reason
        found = {type(each): each for each in [await me.receive(), await me.receive()]}
        assert found == {Exited: Exited(pid, end), Down: Down(ref, pid, end)}
        assert await pid.wait() == end

    thread = in_thread(other, foreign)
    await anyio.to_thread.run_sync(ready.wait)
    results: list[Any] = []
    async with Scope() as scope:
        visitors = [
            scope.spawn(visitor, pid, ["x", KILL, SHUTDOWN][number % 3], results, trap_exit=True)
            for number, pid in enumerate(peers)
        ]
        with anyio.fail_after(60):
            assert {await pid.wait() for pid in visitors} == {NORMAL}
    assert results == ["hello"] * rounds
    stop.set()
    await anyio.to_thread.run_sync(thread.join)


async def test_signals_from_another_thread_come_in_order() -> None:
    def hectic(pid: Pid) -> None:
        for number in range(500):
            pid.send(number)
            pid.exit(number)

    async def target(results: list[Any]) -> None:
        me = current_process()
        async with anyio.create_task_group() as tg:
            tg.start_soon(anyio.to_thread.run_sync, hectic, me.pid)
            results.extend([await me.receive() for _ in range(1000)])

    found = [getattr(each, "reason", each) for each in await run(target, trap_exit=True)]

    assert found == [number // 2 for number in range(1000)]


@pytest.mark.heavy
async def test_no_message_and_no_down_is_lost_between_threads() -> None:
    senders, each = 8, 400

    def send(pid: Pid, target: Process, name: int) -> None:
        for number in range(each):
            pid.send((name, number))
            if number % 20 == 0:
                target.signal(None, NORMAL)

    def is_of(name: int, message: Any) -> bool:
        return bool(message[0] == name)

    async def target(results: list[Any]) -> None:
        me = current_process()
        async with anyio.create_task_group() as tg:
            for name in range(senders):
                tg.start_soon(anyio.to_thread.run_sync, send, me.pid, me, name)
            for name in range(senders):
                for number in range(each):
                    match = functools.partial(is_of, name)
                    found = await me.receive(match, timeout=60)
                    results.append(found == (name, number))

    assert all(await run(target))


async def test_senders_of_other_threads_keep_a_bounded_mailbox_within_its_bounds() -> None:
    over: list[int] = []

    def send(pid: Pid, name: int) -> None:
        for number in range(2000):
            pid.send((name, number))
        over.append(name)

    async def target(results: list[Any]) -> None:
        me = current_process()
        async with anyio.create_task_group() as tg:
            for name in range(4):
                tg.start_soon(anyio.to_thread.run_sync, send, me.pid, name)
            while len(over) < 4 or me.mailbox:
                match = tuple if len(results) % 2 else None
                try:
                    results.append(await me.receive(match, timeout=0.2))
                except TimeoutError:
                    pass  # somebody takes his time, or his last one was dropped
                assert len(me.mailbox) <= 5

    results = await run(target, capacity=5, overflow=Overflow.DROP_OLDEST)

    assert len(results) >= 5
    for name in range(4):
        mine = [number for each, number in results if each == name]
        assert mine == sorted(set(mine))


async def test_what_another_thread_tells_of_a_link_that_is_taken_back_is_dropped() -> None:
    async def linker(results: list[Any]) -> None:
        me = current_process()
        peer = Process(Device())
        me.link(peer.pid)
        board = peer.device._board
        told = board.pop(me.device._board, "no link")  # as the other begins to tell of its end
        peer.end("x")
        me.unlink(peer.pid)
        assert told is None
        assert me.links == []

        me.device.line().send(Disconnected(peer.device.id, fault_of("x")))
        await checkpoint()
        results.append(me._links)

    assert await run(linker) == [{}]


@virtual
@pytest.mark.parametrize("depth", [1, 3])
async def test_an_exit_out_of_a_task_group_of_its_own_is_an_exit(depth: int) -> None:
    async def leave(left: int) -> None:
        if not left:
            raise Exit(Stopped("done"))
        async with anyio.create_task_group() as tg:
            tg.start_soon(leave, left - 1)
            tg.start_soon(forever)

    async with Scope() as scope:
        pid, quiet = scope.spawn(leave, depth), scope.spawn(leave, 0)

        assert await pid.wait() == await quiet.wait() == Stopped("done")


@virtual
async def test_more_than_one_exit_at_once_is_no_exit() -> None:
    async def leave(reason: str) -> None:
        raise Exit(reason)

    async def both() -> None:
        async with anyio.create_task_group() as tg:
            tg.start_soon(leave, "one")
            tg.start_soon(leave, "other")

    async with Scope() as scope:
        reason = await scope.spawn(both).wait()

    assert isinstance(reason, ExceptionGroup)
    assert {str(each) for each in reason.exceptions} == {"exit: 'one'", "exit: 'other'"}
