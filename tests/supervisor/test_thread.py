"""Children in threads: real threads, loops of both libraries, in real time."""

# ruff: noqa: PT012 - what raises is the block of a supervisor, and things happen in it

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from typing import Any, Literal

import anyio
import anyio.lowlevel
import pytest
import sniffio
from anyio.abc import TaskStatus

from backplane import Device, Disconnected, Failed, Killed, LinkMode, current_device
from backplane.supervisor import (
    BRUTAL_KILL,
    ChildExited,
    ChildKilled,
    ChildSpec,
    ChildState,
    ChildUnresponsive,
    Event,
    MaxRestartsError,
    Restart,
    SpecError,
    StartError,
    Supervisor,
    ZombieLimitError,
    alive,
    in_thread,
)

Backend = Literal["asyncio", "trio"]

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.parametrize("backend", ["asyncio", "trio"]),
    pytest.mark.usefixtures("nothing_left"),
]


class Until:
    """Wait for what other threads bring about."""

    def __init__(self, condition: Callable[[], object]) -> None:
        self._condition = condition

    def __await__(self) -> Any:
        return self._poll().__await__()

    async def _poll(self) -> None:
        with anyio.fail_after(20):
            while not self._condition():
                await anyio.sleep(0.001)


async def threads_to_end() -> None:
    """Wait until threads that were disowned are over."""
    kinds = ("supervisor/", "inner/")
    await Until(lambda: not [t for t in threading.enumerate() if t.name.startswith(kinds)])


async def test_the_work_runs_in_a_thread_and_loop_of_its_own(backend: Backend) -> None:
    seen: list[object] = []
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")
    variable.set("inherited")

    async def work(*args: object, key: object) -> None:
        seen.extend([threading.current_thread().name, sniffio.current_async_library()])
        seen.extend([variable.get(), args, key, current_device().connected])
        await anyio.sleep_forever()

    spec = ChildSpec("worker", in_thread(work, backend=backend), (1, 2), kwargs={"key": 3})
    async with Supervisor([spec]) as supervisor:
        await Until(lambda: len(seen) == 6)
        assert seen == ["supervisor/worker", backend, "inherited", (1, 2), 3, True]
        assert supervisor.which_child("worker").state is ChildState.RUNNING


async def test_what_it_raises_the_child_raises(backend: Backend) -> None:
    error = ValueError("in a thread")

    async def work() -> None:
        raise error

    events: list[Event] = []
    with pytest.raises(MaxRestartsError) as caught:
        async with Supervisor([in_thread(work, backend=backend)], subscribers=[events.append]):
            await anyio.sleep(20)
    assert caught.value.__cause__ is error
    exits = [event for event in events if isinstance(event, ChildExited)]
    assert [event.fault for event in exits] == [Failed(error)] * 4
    assert [event.child for event in exits] == ["work"] * 4


async def test_what_it_returns_the_function_returns_even_without_a_supervisor(
    backend: Backend,
) -> None:
    async def work(a: int, *, b: int) -> int:
        await anyio.sleep(0.001)
        return a + b

    assert await in_thread(work, backend=backend)(1, b=2) == 3


@pytest.mark.parametrize("supervised", [False, True])
async def test_a_stop_waits_for_its_cleanup(backend: Backend, supervised: bool) -> None:
    log: list[str] = []

    async def work() -> None:
        log.append("begin")
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.05)
            log.append("end")

    run = in_thread(work, backend=backend)
    if supervised:
        async with Supervisor([run]):
            await Until(lambda: log)
    else:
        async with anyio.create_task_group() as tg:
            tg.start_soon(run)
            await Until(lambda: log)
            tg.cancel_scope.cancel()
    assert log == ["begin", "end"]


async def test_an_error_in_its_cleanup_comes_out(backend: Backend) -> None:
    begun = threading.Event()

    async def work() -> None:
        begun.set()
        try:
            await anyio.sleep_forever()
        finally:
            raise ValueError("in the cleanup")

    events: list[Event] = []
    async with Supervisor([in_thread(work, backend=backend)], subscribers=[events.append]):
        await Until(begun.is_set)
    (exited,) = (event for event in events if isinstance(event, ChildExited))
    assert isinstance(exited.fault, Failed)
    assert str(exited.fault.exception) == "in the cleanup"


async def test_what_it_raised_just_before_it_is_stopped_comes_out(backend: Backend) -> None:
    begun, go = threading.Event(), threading.Event()
    caught: list[BaseException] = []

    async def work() -> None:
        begun.set()
        go.wait()
        raise ValueError("in time")

    async def run() -> None:
        try:
            await in_thread(work, backend=backend)()
        except ValueError as error:
            caught.append(error)

    async with anyio.create_task_group() as tg:
        tg.start_soon(run)
        await Until(begun.is_set)
        (thread,) = (each for each in threading.enumerate() if each.name == "work")
        go.set()
        thread.join()  # this loop does not come round meanwhile
        tg.cancel_scope.cancel()
    assert [str(error) for error in caught] == ["in time"]


async def test_it_says_itself_when_it_has_started(backend: Backend) -> None:
    go = threading.Event()

    async def work(*, task_status: TaskStatus[str]) -> None:
        while not go.is_set():
            await anyio.sleep(0.001)
        task_status.started("a value")
        await anyio.sleep_forever()

    timer = threading.Timer(0.05, go.set)
    timer.start()
    async with Supervisor([in_thread(work, backend=backend)]) as supervisor:
        assert go.is_set()
        assert supervisor.which_child("work").value == "a value"
    timer.join()


async def test_a_failure_before_that_is_a_failed_start(backend: Backend) -> None:
    async def work(*, task_status: TaskStatus[str]) -> None:
        raise ValueError

    with pytest.raises(StartError):
        async with Supervisor([in_thread(work, backend=backend)], subscribers=()):
            pytest.fail("it must not be entered")


async def test_a_blocked_loop_is_its_own_and_it_is_disowned_if_it_does_not_stop(
    backend: Backend,
) -> None:
    blocked, go = threading.Event(), threading.Event()
    log: list[str] = []

    async def work() -> None:
        blocked.set()
        go.wait()
        try:
            await anyio.sleep_forever()
        finally:
            log.append("cancelled")

    events: list[Event] = []
    spec = ChildSpec("work", in_thread(work, backend=backend), shutdown=0.05)
    watcher = Device()
    async with Supervisor([spec], subscribers=[events.append]) as supervisor:
        await Until(blocked.is_set)
        line = supervisor.which_child("work").line
        assert line is not None
        watcher.link(line, LinkMode.MONITOR)
        await supervisor.terminate_child("work")
        assert supervisor.tree().zombies == ("supervisor/work",)
        assert "zombie" in str(supervisor.tree())
        assert watcher.receive_nowait() == Disconnected(line.id, Killed())
        (killed,) = (event for event in events if isinstance(event, ChildKilled))
        assert killed.zombie
        go.set()
        await Until(lambda: not supervisor.tree().zombies)
    assert log == ["cancelled"]
    await threads_to_end()


async def test_too_many_zombies_end_the_whole_tree(backend: Backend) -> None:
    go = threading.Event()
    blocked: list[int] = []

    async def work() -> None:
        blocked.append(1)
        go.wait()

    def spec(name: str) -> ChildSpec:
        return ChildSpec(
            name, in_thread(work, backend=backend), restart=Restart.TEMPORARY, shutdown=0.01
        )

    inner = Supervisor([spec("a"), spec("b")], zombie_limit=1, name="inner")
    try:
        with pytest.raises(MaxRestartsError) as caught:
            async with Supervisor([inner], max_restarts=100, subscribers=()):
                await Until(lambda: len(blocked) == 2)
                await inner.terminate_child("a")
                assert inner.count_children().active == 1
                await inner.terminate_child("b")
                await anyio.sleep(20)
        error = caught.value.__cause__
        assert isinstance(error, ZombieLimitError)
        assert len(error.names) == 2
        assert "more than 1 zombies" in str(error)
    finally:
        go.set()
    await threads_to_end()


async def test_a_watchdog_reports_where_the_thread_stands(backend: Backend) -> None:
    reports: list[int] = []
    stands, go = threading.Event(), threading.Event()

    async def work() -> None:
        reports.clear()
        for _ in range(5):
            alive()
            reports.append(1)
            await anyio.sleep(0.02)
        stands.set()
        go.wait()  # here

    async def bite(watchdog: float) -> tuple[ChildUnresponsive, bool]:
        """What the watchdog reports, and whether the thread stood there already."""
        told: list[tuple[ChildUnresponsive, bool]] = []

        def hear(event: Event) -> None:
            if isinstance(event, ChildUnresponsive):
                told.append((event, stands.is_set()))

        run = in_thread(work, backend=backend)
        spec = ChildSpec("work", run, restart=Restart.TEMPORARY, watchdog=watchdog)
        async with Supervisor([spec], subscribers=[hear]):
            await Until(lambda: told)
            go.set()
        await threads_to_end()
        [it] = told
        return it

    event, stood = await bite(0.5)
    if not stood:  # the whole machine did before, and for longer
        stands.clear()
        go.clear()
        event, stood = await bite(5)
    assert stood
    assert "go.wait()  # here" in event.stack
    assert len(reports) == 5


async def test_a_restart_makes_a_new_thread(backend: Backend) -> None:
    names: list[int] = []

    async def work() -> None:
        names.append(threading.get_native_id())
        if len(names) < 3:
            raise ValueError
        await anyio.sleep_forever()

    async with Supervisor([in_thread(work, backend=backend)], subscribers=()):
        await Until(lambda: len(names) == 3)
    assert threading.get_native_id() not in names


async def test_a_supervisor_can_live_in_the_thread(backend: Backend) -> None:
    started, ended = threading.Event(), threading.Event()

    async def leaf() -> None:
        started.set()
        try:
            await anyio.sleep_forever()
        finally:
            ended.set()

    inner = Supervisor([leaf], name="inner")
    spec = ChildSpec("inner", in_thread(inner.run, backend=backend), is_supervisor=True)
    async with Supervisor([spec], name="top") as supervisor:
        await Until(started.is_set)
        assert supervisor.count_children().supervisors == 1
        assert "leaf running" in str(supervisor.tree())
    assert ended.is_set()


async def test_a_child_can_ask_its_supervisor_from_its_thread(backend: Backend) -> None:
    done = threading.Event()

    async def other() -> None:
        await anyio.sleep_forever()

    async def work() -> None:
        await supervisor.start_child(other)
        await supervisor.terminate_child("other")
        done.set()
        await anyio.sleep_forever()

    supervisor = Supervisor([in_thread(work, backend=backend)])
    async with supervisor:
        await Until(done.is_set)
        assert supervisor.which_child("other").state is ChildState.STOPPED


@pytest.mark.parametrize("fn", [None, lambda: None, 3])
async def test_only_an_async_function_can_be_run_there(backend: Backend, fn: Any) -> None:
    with pytest.raises(SpecError, match="in_thread"):
        in_thread(fn, backend=backend)


async def test_a_thread_has_a_loop_of_a_kind_that_is_known(backend: Backend) -> None:
    async def work() -> None: ...

    with pytest.raises(SpecError, match="backend must be 'asyncio' or 'trio', not 'curio'"):
        in_thread(work, backend=backend.replace(backend, "curio"))  # type: ignore[arg-type]


async def test_a_disowned_thread_is_killed_in_its_own_loop(backend: Backend) -> None:
    """Even if it swallows cancellation, as far as its loop can do that."""
    begun, ticks = threading.Event(), 0

    async def work() -> None:
        nonlocal ticks
        begun.set()
        while ticks < 1000:
            try:
                await anyio.sleep(0.01)
            except anyio.get_cancelled_exc_class():
                if backend == "trio":  # where nothing else can be done
                    raise
            ticks += 1

    spec = ChildSpec("work", in_thread(work, backend=backend), shutdown=0.05)
    async with Supervisor([spec], subscribers=()) as supervisor:
        await Until(begun.is_set)
        await supervisor.terminate_child("work")
        await threads_to_end()
    assert ticks < 100


async def test_a_thread_that_blocks_does_not_keep_the_loop_from_ending(backend: Backend) -> None:
    go, begun = threading.Event(), threading.Event()

    async def work() -> None:
        begun.set()
        go.wait()

    def main() -> None:
        async def run() -> None:
            spec = ChildSpec("work", in_thread(work, backend=backend), shutdown=0.01)
            async with Supervisor([spec], subscribers=()):
                await Until(begun.is_set)

        anyio.run(run, backend=library)

    library = sniffio.current_async_library()
    outer = threading.Thread(target=contextvars.Context().run, args=(main,))
    outer.start()
    await Until(lambda: not outer.is_alive())
    outer.join()
    go.set()
    await threads_to_end()


async def test_a_thread_that_is_killed_before_it_has_a_loop_does_no_work(backend: Backend) -> None:
    go, begun, done = threading.Event(), threading.Event(), threading.Event()

    def hold(*_: object) -> None:
        begun.set()
        go.wait()

    async def work() -> None:
        done.set()
        await anyio.sleep_forever()

    spec = ChildSpec("work", in_thread(work, backend=backend), shutdown=BRUTAL_KILL)
    async with Supervisor([], subscribers=()) as supervisor:
        threading.setprofile(hold)  # is called in each new thread first
        try:
            await supervisor.start_child(spec)
            await Until(begun.is_set)
        finally:
            threading.setprofile(None)
        await supervisor.terminate_child("work")
        go.set()
        await threads_to_end()
    assert not done.is_set()
