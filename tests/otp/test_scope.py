"""Scopes: no process outlives its own, whatever happens; and processes under supervisors."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import math
import threading
from collections.abc import Iterator
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from backplane import CascadeCrash, Device, Killed, LinkMode, current_device
from backplane.otp import (
    KILL,
    KILLED,
    NORMAL,
    SHUTDOWN,
    Exit,
    Exited,
    Overflow,
    Pid,
    Scope,
    ScopeError,
    Stopped,
    current_process,
    current_scope,
    process_spec,
    spawn,
    spawn_link,
    spawn_monitor,
)
from backplane.supervisor import ChildState, Restart, Supervisor

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("nothing_left", "no_records")]
virtual = pytest.mark.parametrize(
    "anyio_backend", ["virtual asyncio", "virtual trio"], indirect=True
)


@pytest.fixture
def no_records() -> Iterator[None]:
    """Have pytest keep no record of errors: their frames refer to the processes."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


async def forever() -> None:
    await anyio.sleep(math.inf)


async def slow(seconds: float, ended: list[str]) -> None:
    try:
        await forever()
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(seconds)
        ended.append("slow")


async def stubborn() -> None:
    """Ignores requests to end, but not a kill, on any loop."""
    me = current_process()
    me.trap_exit = True
    while True:
        await me.receive()


async def raising(exc: BaseException) -> None:
    raise exc


# -- leaving


@virtual
async def test_leaving_a_scope_asks_its_processes_to_end_and_waits_for_them() -> None:
    ended: list[str] = []
    async with Scope() as scope:
        pids = [scope.spawn(slow, 3, ended), scope.spawn(forever)]
        await anyio.sleep(1)
        assert scope.processes == pids
        start = anyio.current_time()

    assert anyio.current_time() == start + 3
    assert [pid.reason for pid in pids] == [SHUTDOWN, SHUTDOWN]
    assert ended == ["slow"]
    assert scope.processes == []


@virtual
@pytest.mark.parametrize("grace", [0, 2, 5])
async def test_those_that_do_not_end_in_time_are_killed(grace: float) -> None:
    async with Scope(grace=grace) as scope:
        pids = [scope.spawn(stubborn) for _ in range(3)]
        await anyio.sleep(1)
        start = anyio.current_time()

    assert anyio.current_time() == start + grace
    assert [pid.reason for pid in pids] == [KILLED] * 3


@virtual
async def test_a_scope_may_wait_without_end() -> None:
    ended: list[str] = []
    async with Scope(grace=math.inf) as scope:
        scope.spawn(slow, 1e6, ended)
        await anyio.sleep(1)

    assert ended == ["slow"]


@virtual
async def test_a_trapping_process_hears_from_its_scope_before_all_that_waits() -> None:
    found: list[Any] = []

    async def server() -> None:
        await anyio.sleep(1)
        found.append(await current_process().receive())

    async with Scope() as scope:
        pid = scope.spawn(server, trap_exit=True)
        await checkpoint()
        for number in range(1000):
            pid.send(number)
    assert isinstance(found[0], Exited)
    assert found[0].reason is SHUTDOWN
    assert pid.reason is NORMAL


@virtual
async def test_a_process_that_has_not_begun_when_the_scope_is_left_never_does() -> None:
    ran = []

    async def target() -> None:
        ran.append(True)

    async with Scope() as scope:
        pid = scope.spawn(target)

    assert pid.reason is SHUTDOWN
    assert ran == []


@virtual
async def test_what_ends_a_process_does_not_end_the_block() -> None:
    async with Scope() as scope:
        for exc in [ValueError("x"), Exit("x"), Exit(KILL)]:
            await scope.spawn(raising, exc).wait()
        await anyio.sleep(1)
        finished = True
    assert finished


@virtual
async def test_an_exception_in_the_block_comes_out_after_all_have_ended() -> None:
    ended: list[str] = []

    async def block() -> None:
        async with Scope() as scope:
            scope.spawn(slow, 3, ended)
            await anyio.sleep(1)
            raise ValueError("from the block")

    with pytest.raises(ValueError, match="from the block"):
        await block()
    assert ended == ["slow"]


@virtual
async def test_a_cancelled_block_waits_for_its_processes() -> None:
    ended: list[str] = []
    with anyio.move_on_after(2) as timeout:
        async with Scope() as scope:
            scope.spawn(slow, 3, ended)
            await forever()

    assert timeout.cancelled_caught
    assert anyio.current_time() - timeout.deadline == pytest.approx(3)
    assert ended == ["slow"]


@virtual
@pytest.mark.parametrize("turns", range(12))
async def test_a_scope_that_is_cancelled_at_any_turn_leaves_nothing(turns: int, call: Any) -> None:
    pids: list[Pid] = []
    ended: list[str] = []

    async def block() -> None:
        async with Scope(grace=2) as scope:
            pids.append(scope.spawn(slow, 1, ended))
            pids.append(scope.spawn(stubborn))
            await checkpoint()
            await scope.spawn(checkpoint).wait()

    async with anyio.create_task_group() as tg:
        blocking = call(block)
        tg.start_soon(blocking)
        for _ in range(turns):
            await checkpoint()
        if not blocking.over:
            blocking.cancel()
    assert all(pid.reason in {SHUTDOWN, KILLED} for pid in pids)


@virtual
@pytest.mark.parametrize("seconds", [0.5, 1.5, 2])
async def test_a_scope_that_is_cancelled_while_it_is_left_outlasts_that(
    seconds: float, call: Any
) -> None:
    ended: list[str] = []

    async def block() -> None:
        async with Scope() as scope:
            scope.spawn(slow, 3, ended)
            await checkpoint()
            await checkpoint()
        await checkpoint()

    async with anyio.create_task_group() as tg:
        blocking = call(block)
        tg.start_soon(blocking)
        await anyio.sleep(seconds)
        blocking.cancel()
        await blocking.wait()
    assert blocking.cancelled
    assert ended == ["slow"]
    assert anyio.current_time() >= 3


@virtual
@pytest.mark.parametrize("exc", [SystemExit(3), KeyboardInterrupt()])
async def test_a_process_that_ends_the_program_from_a_task_group_ends_the_block(
    exc: BaseException,
) -> None:
    pids: list[Pid] = []
    group = BaseExceptionGroup("from a task group", [exc])

    async def block() -> None:
        async with Scope() as scope:
            pids.append(scope.spawn(forever))
            pids.append(scope.spawn(raising, group))
            await forever()

    with pytest.raises(BaseExceptionGroup) as caught:
        await block()

    assert caught.value is group
    assert pids[0].reason is SHUTDOWN
    assert pids[1].reason is group


@pytest.mark.parametrize("anyio_backend", ["virtual trio"], indirect=True)
async def test_the_exit_of_the_program_comes_out_as_it_is() -> None:
    async def block() -> None:
        async with Scope() as scope:
            scope.spawn(raising, SystemExit(3))
            await forever()

    with pytest.raises(SystemExit, match="3"):
        await block()


@virtual
async def test_a_device_that_the_block_depends_on_ends_it_as_elsewhere() -> None:
    device = Device()
    pids: list[Pid] = []

    async def block() -> None:
        async with Scope() as scope:
            pids.append(scope.spawn(forever))
            current_device().link(device, LinkMode.MONITOR)
            device.disconnect(Killed())
            await forever()

    with pytest.raises(CascadeCrash):
        await block()
    assert pids[0].reason is SHUTDOWN


# -- what is refused


@virtual
async def test_nothing_is_spawned_in_a_scope_that_is_not_open() -> None:
    scope = Scope("mine")
    with pytest.raises(ScopeError, match="scope 'mine' is not open"):
        scope.spawn(forever)
    async with scope:
        with pytest.raises(ScopeError, match="already open"):
            await scope.__aenter__()
        assert repr(scope) == "<Scope 'mine' open, 0 processes>"
    with pytest.raises(ScopeError, match="scope 'mine' is not open"):
        scope.spawn(forever)
    assert repr(scope) == "<Scope 'mine' closed, 0 processes>"
    async with scope:  # once more
        assert await scope.spawn(checkpoint).wait() is NORMAL


@virtual
async def test_a_process_in_its_cleanup_cannot_spawn_in_a_scope_that_is_being_left() -> None:
    errors: list[ScopeError] = []

    async def target() -> None:
        try:
            await forever()
        finally:
            try:
                spawn(forever)
            except ScopeError as error:
                errors.append(error)

    async with Scope() as scope:
        scope.spawn(target)
        await anyio.sleep(1)
    assert len(errors) == 1


@virtual
async def test_what_is_no_function_is_refused() -> None:
    async with Scope() as scope:
        with pytest.raises(TypeError, match="wants an async function, not a int"):
            scope.spawn(3)  # type: ignore[arg-type]
        assert scope.processes == []


@virtual
async def test_the_innermost_open_scope_is_the_current_one() -> None:
    with pytest.raises(ScopeError, match="no open scope here"):
        current_scope()
    async with Scope() as outer:
        async with Scope() as inner:
            assert current_scope() is inner
        assert current_scope() is outer
    with pytest.raises(ScopeError, match="no open scope here"):
        spawn(forever)


@virtual
async def test_a_process_starts_others_in_its_own_scope_and_they_outlive_it() -> None:
    async def parent(found: list[Pid]) -> None:
        found.append(spawn(child))

    async def child() -> None:
        assert current_process().parent is None
        await forever()

    async with Scope() as scope:
        found: list[Pid] = []
        pid = scope.spawn(parent, found)
        await pid.wait()
        await anyio.sleep(1)
        pid.exit(KILL)
        await anyio.sleep(1)

        assert scope.processes == found


@virtual
async def test_the_parent_is_who_has_started_it_with_a_link() -> None:
    parents: list[Pid | None] = []

    async def child() -> None:
        parents.append(current_process().parent)

    async def parent() -> None:
        await spawn(child).wait()
        await spawn_link(child).wait()
        await spawn_monitor(child)[0].wait()

    async with Scope() as scope:
        pid = scope.spawn(parent)
        assert await pid.wait() is NORMAL

    assert parents == [None, pid, None]


@virtual
async def test_a_kill_of_the_parent_is_not_that_of_its_children() -> None:
    async def parent(found: list[Pid]) -> None:
        found.append(spawn(forever))
        await forever()

    async with Scope() as scope:
        found: list[Pid] = []
        pid = scope.spawn(parent, found)
        await anyio.sleep(1)
        pid.exit(KILL)
        assert await pid.wait() is KILLED
        await anyio.sleep(1)

        assert found[0].alive


@virtual
async def test_those_in_a_scope_within_a_process_go_with_it() -> None:
    async def parent(found: list[Pid]) -> None:
        async with Scope(grace=2) as scope:
            found.append(scope.spawn(forever))
            found.append(scope.spawn(stubborn))
            await forever()

    async with Scope() as scope:
        for reason, ends in [("x", [SHUTDOWN, KILLED]), (KILL, [KILLED, KILLED])]:
            found: list[Pid] = []
            pid = scope.spawn(parent, found)
            await anyio.sleep(1)
            pid.exit(reason)
            assert await pid.wait() is (KILLED if reason is KILL else reason)
            await anyio.sleep(1)

            assert [each.reason for each in found] == ends


async def test_a_scope_takes_no_process_from_another_thread() -> None:
    errors: list[Exception] = []

    def foreign(scope: Scope) -> None:
        try:
            scope.spawn(forever)
        except ScopeError as error:
            errors.append(error)

    async with Scope() as scope:
        thread = threading.Thread(target=foreign, args=(scope,))
        thread.start()
        thread.join()
        assert scope.processes == []
    assert "of another thread" in str(errors[0])


@virtual
async def test_a_scope_runs_as_a_task() -> None:
    async with anyio.create_task_group() as tg:
        scope = await tg.start(Scope().run)
        pid = scope.spawn(forever)
        await anyio.sleep(1)
        assert pid.alive
        tg.cancel_scope.cancel()
    assert pid.reason is SHUTDOWN


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_a_scope_that_is_left_in_another_context_ends_its_processes() -> None:
    scope = Scope()
    context = contextvars.copy_context()
    pids: list[Pid] = []

    async def whole() -> None:
        entering = scope.__aenter__()
        with pytest.raises(StopIteration):
            context.run(entering.send, None)
        pids.append(scope.spawn(forever))
        await checkpoint()
        await checkpoint()
        await scope.__aexit__(None, None, None)

    await asyncio.create_task(whole())
    assert pids[0].reason is SHUTDOWN


@pytest.mark.parametrize("anyio_backend", ["virtual trio"], indirect=True)
async def test_what_cannot_be_killed_is_left_behind() -> None:
    ended: list[str] = []
    async with Scope(grace=1) as scope:
        pid = scope.spawn(slow, 100, ended)
        await anyio.sleep(1)

    assert pid.reason is KILLED
    assert ended == []
    await anyio.sleep(200)
    assert ended == ["slow"]


async def test_spawning_and_waiting_work_on_every_loop() -> None:
    async def parent(found: list[Any]) -> None:
        me = current_process()
        spawn_link(checkpoint)
        pid, ref = spawn_monitor(forever, capacity=3, overflow=Overflow.DROP_NEWEST)
        pid.exit(KILL)
        found.append(await me.receive())
        assert found[0].ref is ref

    async with Scope() as scope:
        found: list[Any] = []
        assert await scope.spawn(parent, found).wait() is NORMAL
    assert found[0].reason is KILLED


# -- under a supervisor


@virtual
@pytest.mark.parametrize(
    ("restart", "reason", "restarted"),
    [
        *(
            (Restart.PERMANENT, reason, True)
            for reason in [NORMAL, SHUTDOWN, Stopped(1), "x", KILL]
        ),
        *((Restart.TRANSIENT, reason, False) for reason in [NORMAL, SHUTDOWN, Stopped(1)]),
        *((Restart.TRANSIENT, reason, True) for reason in ["x", KILL, ValueError("x")]),
        *((Restart.TEMPORARY, reason, False) for reason in [NORMAL, SHUTDOWN, "x", KILL]),
    ],
)
@pytest.mark.parametrize("itself", [True, False])
async def test_a_supervisor_restarts_by_the_reason(
    restart: Restart, reason: object, restarted: bool, itself: bool
) -> None:
    pids: list[Pid] = []

    async def target() -> None:
        me = current_process()
        pids.append(me.pid)
        if len(pids) == 1:
            await anyio.sleep(1)
            if itself:
                raise Exit(reason)
            me.pid.exit(reason)
        await forever()

    spec = process_spec("target", target, restart=restart)
    async with Supervisor([spec]) as supervisor:
        await anyio.sleep(5)

        assert len(pids) == 1 + restarted
        if restarted:
            assert supervisor.which_child("target").value == pids[1]
    assert not pids[-1].alive
    expected = KILLED if reason is KILL and not itself else reason
    assert pids[0].reason == expected


@virtual
async def test_a_supervised_process_is_restarted_when_one_that_it_is_linked_with_fails() -> None:
    pids: list[Pid] = []

    async def target() -> None:
        pids.append(current_process().pid)
        if len(pids) == 1:
            current_process().link(others[0])
        await forever()

    async with Scope() as scope:
        others = [scope.spawn(forever)]
        async with Supervisor([process_spec("target", target, restart=Restart.TRANSIENT)]):
            await anyio.sleep(1)
            others[0].exit("x")
            await anyio.sleep(1)

            assert [pid.alive for pid in pids] == [False, True]
            assert pids[0].reason == "x"


@virtual
async def test_a_supervisor_stops_a_trapping_process_before_all_that_waits() -> None:
    found: list[Any] = []

    async def server() -> None:
        await anyio.sleep(2)
        found.append(await current_process().receive())

    spec = process_spec("server", server, trap_exit=True)
    async with Supervisor([spec]) as supervisor:
        pid: Any = supervisor.which_child("server").value
        await anyio.sleep(1)
        for number in range(100_000):
            pid.send(number)
    assert found[0].reason is SHUTDOWN
    assert pid.reason is NORMAL


@virtual
async def test_a_supervisor_kills_a_process_that_does_not_stop() -> None:
    async with Supervisor([process_spec("stubborn", stubborn, shutdown=3.0)]) as supervisor:
        info = supervisor.which_child("stubborn")
        assert info.state is ChildState.RUNNING
        pid: Any = info.value
        await anyio.sleep(1)
        start = anyio.current_time()
    assert anyio.current_time() == start + 3
    assert pid.reason is KILLED


@virtual
async def test_a_supervised_process_is_stopped_with_its_cleanup() -> None:
    ended: list[str] = []
    async with Supervisor([process_spec("slow", slow, 2, ended)]) as supervisor:
        pid: Any = supervisor.which_child("slow").value
        await anyio.sleep(1)
    assert ended == ["slow"]
    assert pid.reason is SHUTDOWN
