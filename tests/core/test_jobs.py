"""Jobs: how they start, nest, end, are cancelled and are killed."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import subprocess
import sys
import textwrap
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any, ParamSpec

import anyio
import anyio.abc
import anyio.lowlevel
import pytest
import sniffio
import trio

from backplane import Device, Disconnected, Failed, Killed, LinkMode
from backplane._loop._seat import is_within
from backplane.lowlevel import Job, current_job, hold, release, start_job

P = ParamSpec("P")
Fn = Callable[[], Awaitable[object]]

ENOUGH = 10  # turns of a loop, for whatever is going on to come to a rest
PATIENCE = 60.0  # seconds, after which something hangs
LOOPS = ["asyncio", "uvloop"] + (["eager asyncio"] if sys.version_info >= (3, 12) else [])

only_asyncio = pytest.mark.parametrize("anyio_backend", LOOPS, indirect=True)
only_plain_asyncio = pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
only_trio = pytest.mark.parametrize("anyio_backend", ["trio"], indirect=True)


def in_time(test: Callable[P, Awaitable[None]]) -> Callable[P, Coroutine[Any, Any, None]]:
    """Mark an async test for anyio; fail it when it hangs."""

    @pytest.mark.anyio
    @functools.wraps(test)
    async def timed(*args: P.args, **kwargs: P.kwargs) -> None:
        with anyio.fail_after(PATIENCE):
            await test(*args, **kwargs)

    return timed


async def turns(count: int = ENOUGH) -> None:
    for _ in range(count):
        await anyio.lowlevel.checkpoint()


async def nothing() -> None:
    pass


class Started:
    """A job, and how often its end was told."""

    def __init__(self, fn: Fn, name: str = "job", owner: object = None) -> None:
        self.ends: list[Job] = []
        self.ended = anyio.Event()
        self.job = start_job(fn, self._on_end, name, owner)

    def _on_end(self, job: Job) -> None:
        assert job.done
        self.ends.append(job)
        self.ended.set()

    async def end(self) -> Job:
        await self.ended.wait()
        assert self.ends == [self.job]
        return self.job


# -- starting and ending --------------------------------------------------------------


@in_time
async def test_a_job_runs_in_a_task_of_its_own_and_tells_its_end_once() -> None:
    here, there = anyio.get_current_task().id, []

    async def fn() -> str:
        there.append(anyio.get_current_task().id)
        await turns(3)
        return "ignored"

    started = Started(fn)
    assert there == []
    assert not started.job.done
    job = await started.end()
    await turns()

    assert len(there) == 1
    assert there != [here]
    assert started.ends == [job]
    assert job.done
    assert not job.killed
    assert job.exception is None
    assert job.stack() == []


@in_time
async def test_on_end_is_called_in_the_loop_of_the_job() -> None:
    libraries = []
    start_job(nothing, lambda _: libraries.append(sniffio.current_async_library()), "job")

    await turns()

    assert libraries == [sniffio.current_async_library()]


@in_time
@pytest.mark.parametrize(
    "error", [ValueError("no"), KeyboardInterrupt(), SystemExit(3), GeneratorExit()], ids=repr
)
@pytest.mark.parametrize("late", [False, True])
async def test_an_exception_is_kept_and_let_out_to_nobody(error: BaseException, late: bool) -> None:
    async def fn() -> None:
        if late:
            await turns(2)
        raise error

    assert (await Started(fn).end()).exception is error


@in_time
async def test_an_exception_of_the_call_itself_is_kept() -> None:
    error = ValueError("no")

    def fn() -> Awaitable[None]:
        raise error

    assert (await Started(fn).end()).exception is error


@in_time
async def test_a_stop_iteration_of_the_call_itself_is_an_error() -> None:
    error = StopIteration("no")

    def fn() -> Awaitable[None]:
        raise error

    assert (await Started(fn).end()).exception is error


@in_time
async def test_a_stop_iteration_of_the_coroutine_is_an_error() -> None:
    async def fn() -> None:
        raise StopIteration

    assert isinstance((await Started(fn).end()).exception, RuntimeError)


@in_time
async def test_what_it_runs_may_be_any_awaitable() -> None:
    ran = []

    class Wait:
        def __await__(self) -> Generator[Any, Any, None]:
            yield from turns(3).__await__()
            ran.append("this")

    @types.coroutine
    def generator() -> Generator[Any, Any, None]:
        yield from turns(3).__await__()
        ran.append("that")

    assert (await Started(Wait).end()).exception is None
    assert (await Started(generator).end()).exception is None
    assert ran == ["this", "that"]


@in_time
async def test_a_job_knows_its_name_and_owner() -> None:
    names = []

    async def fn() -> None:
        names.append(anyio.get_current_task().name)

    owner = object()
    job = await Started(fn, "worker", owner).end()

    assert names == ["worker"]
    assert job.name == "worker"
    assert job.owner is owner
    assert start_job(nothing, lambda _: None, "other").owner is None
    await turns()


# -- nesting --------------------------------------------------------------------------


@in_time
async def test_code_outside_of_all_jobs_has_none() -> None:
    assert current_job() is None
    started = Started(nothing)
    assert current_job() is None
    assert (await started.end()).parent is None


@in_time
async def test_jobs_nest_also_by_way_of_other_tasks() -> None:
    inner: list[Started] = []
    seen: list[Job | None] = []

    async def innermost() -> None:
        seen.append(current_job())

    async def start() -> None:
        inner.append(Started(innermost))

    async def fn() -> None:
        seen.append(current_job())
        await start()
        async with anyio.create_task_group() as tg:
            tg.start_soon(start)
        seen.append(current_job())

    outer = Started(fn)
    await outer.end()
    for each in inner:
        await each.end()
    stranger = Started(nothing)
    await stranger.end()

    here, by_task = inner[0].job, inner[1].job
    assert here.parent is by_task.parent is outer.job
    assert seen.count(outer.job) == 2
    assert seen.count(here) == seen.count(by_task) == 1
    assert is_within(outer.job, outer.job)
    assert is_within(here, outer.job)
    assert is_within(by_task, outer.job)
    assert not is_within(outer.job, here)
    assert not is_within(by_task, here)
    assert not is_within(stranger.job, outer.job)
    assert not is_within(None, outer.job)


@in_time
async def test_a_nested_job_outlives_the_one_that_started_it() -> None:
    go, inner = anyio.Event(), []

    async def fn() -> None:
        inner.append(Started(go.wait))

    await Started(fn).end()
    await turns()
    assert not inner[0].job.done
    go.set()
    assert (await inner[0].end()).exception is None


# -- cancelling -----------------------------------------------------------------------


@in_time
async def test_a_job_may_be_cancelled_while_it_waits() -> None:
    diary = []

    async def fn() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            diary.append("cleaned up")

    started = Started(fn)
    await turns(3)
    started.job.cancel()
    assert diary == []
    job = await started.end()

    assert diary == ["cleaned up"]
    assert not job.killed
    if sniffio.current_async_library() == "asyncio":
        assert isinstance(job.exception, asyncio.CancelledError)
    else:
        assert job.exception is None


@in_time
async def test_a_job_may_be_cancelled_before_its_first_step() -> None:
    diary = []

    async def fn() -> None:
        diary.append("began")
        await anyio.lowlevel.checkpoint()
        diary.append("went on")

    started = Started(fn)
    started.job.cancel()
    job = await started.end()

    if sniffio.current_async_library() == "asyncio":
        assert diary == []
        assert isinstance(job.exception, asyncio.CancelledError)
    else:
        assert diary == ["began"]


@in_time
async def test_a_job_may_overcome_its_cancellation() -> None:
    async def fn() -> None:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await anyio.sleep_forever()
        try:
            await anyio.sleep_forever()
        except BaseException:
            raise ValueError("instead") from None

    started = Started(fn)
    await turns()
    started.job.cancel()

    assert isinstance((await started.end()).exception, ValueError)


@in_time
async def test_a_job_that_returns_when_cancelled_has_no_exception() -> None:
    async def fn() -> None:
        try:
            await anyio.sleep_forever()
        except BaseException:
            return

    started = Started(fn)
    await turns()
    started.job.cancel()

    assert (await started.end()).exception is None


@in_time
async def test_cancelling_a_job_that_has_ended_does_nothing() -> None:
    started = Started(nothing)
    job = await started.end()
    job.cancel()
    await turns()
    assert started.ends == [job]


# -- where it stands ------------------------------------------------------------------


@in_time
async def test_its_stack_shows_where_it_stands() -> None:
    async def inner() -> None:
        await anyio.sleep_forever()

    async def outer() -> None:
        await inner()

    started = Started(outer)
    await turns()
    stack = started.job.stack()

    names = [frame.f_code.co_name for frame, _ in stack]
    assert names.index("outer") + 1 == names.index("inner")
    lines = {frame.f_code.co_name: line for frame, line in stack}
    assert lines["inner"] == inner.__code__.co_firstlineno + 1
    assert lines["outer"] == outer.__code__.co_firstlineno + 1
    started.job.cancel()
    await started.end()


@in_time
@only_asyncio
async def test_asyncio_reports_show_where_the_function_of_a_job_stands() -> None:
    async def fn() -> None:
        await anyio.sleep_forever()

    started = Started(fn, "worker")
    assert started.job.stack() == []
    [task] = [each for each in asyncio.all_tasks() if each.get_name() == "worker"]
    coroutine: Any = task.get_coro()
    assert (coroutine.cr_frame, coroutine.cr_await) == (None, None)
    await turns()

    assert [frame.f_code.co_name for frame in task.get_stack()] == ["fn"]
    assert coroutine.cr_await.cr_frame.f_code.co_name == "sleep_forever"
    assert "worker" in repr(task)
    with pytest.raises(TypeError, match="on_end"):
        coroutine.__await__()
    started.job.cancel()
    await started.end()


# -- killing, everywhere --------------------------------------------------------------


@in_time
async def test_a_sleeper_is_killed_after_its_cleanup() -> None:
    diary = []

    async def fn() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            diary.append("cleaned up")

    started = Started(fn)
    await turns()

    assert await started.job.kill()
    assert diary == ["cleaned up"]
    assert started.ends == [started.job]
    assert started.job.killed
    assert started.job.exception is None


@in_time
async def test_a_job_that_has_ended_may_be_killed() -> None:
    started = Started(nothing)
    job = await started.end()

    assert await job.kill()
    assert await job.kill()
    assert started.ends == [job]


@in_time
async def test_a_job_may_be_killed_before_its_first_step() -> None:
    diary = []

    async def fn() -> None:
        if sniffio.current_async_library() == "asyncio":
            diary.append("ran")
        await anyio.sleep_forever()

    started = Started(fn)

    assert await started.job.kill()
    assert diary == []
    assert started.ends == [started.job]


@in_time
async def test_nested_jobs_die_with_the_outer() -> None:
    inner: list[Started] = []

    async def innermost() -> None:
        inner.append(Started(anyio.sleep_forever))
        await anyio.sleep_forever()

    async def fn() -> None:
        inner.append(Started(innermost))
        await anyio.sleep_forever()

    outer, stranger = Started(fn), Started(anyio.sleep_forever)
    await turns()
    assert await outer.job.kill()

    assert len(inner) == 2
    for each in (outer, *inner):
        assert (await each.end()).killed
    await turns()
    assert not stranger.job.done
    assert await stranger.job.kill()


@in_time
@pytest.mark.parametrize("kill", [False, True])
async def test_a_device_that_a_job_manages_is_told_to_be_killed_if_so(kill: bool) -> None:
    monitor, device = Device(), Device()
    monitor.link(device, LinkMode.MONITOR)
    diary = []

    def note(what: str) -> None:
        with pytest.raises(anyio.WouldBlock):
            monitor.receive_nowait()
        diary.append(what)

    async def child() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            note("child")

    async def fn() -> None:
        try:
            async with anyio.create_task_group() as tg:
                tg.start_soon(child)
                await turns()
                if not kill:
                    raise ValueError
        finally:
            note("job")

    started = Started(lambda: device.manage(fn))
    if kill:
        await turns(5)
        assert await started.job.kill()
    await started.end()

    message = monitor.receive_nowait()
    assert isinstance(message, Disconnected)
    assert message.sender == device.id
    assert isinstance(message.fault, Killed if kill else Failed)
    assert diary == ["child", "job"]


@in_time
async def test_a_device_that_stops_for_too_long_is_told_to_be_killed() -> None:
    monitor, device = Device(), Device()
    monitor.link(device, LinkMode.MONITOR)
    stopping = anyio.Event()

    async def fn() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            stopping.set()
            with anyio.CancelScope(shield=True):
                await turns(10)

    started = Started(lambda: device.manage(fn))
    await turns(5)
    device.line().shutdown()
    await stopping.wait()
    assert await started.job.kill()
    await started.end()

    message = monitor.receive_nowait()
    assert isinstance(message, Disconnected)
    assert isinstance(message.fault, Killed)


# -- killing for real, on asyncio -----------------------------------------------------


class Ground:
    """What the victims of a test do, and whether they still do it."""

    def __init__(self) -> None:
        self.steps = 0
        self.free = False  # lets all of them go
        self.task: asyncio.Task[None]
        self.lock = asyncio.Lock()

    async def swallow(self, wait: float = 0.001) -> None:
        """Wait for ever, whatever is thrown in."""
        while not self.free:
            try:
                await asyncio.sleep(wait)
            except BaseException:
                pass
            self.steps += 1

    async def cancellation_swallower(self) -> None:
        while not self.free:
            try:
                await asyncio.sleep(0.001)
            except asyncio.CancelledError:
                pass
            self.steps += 1

    async def base_swallower(self) -> None:
        await self.swallow()

    async def deep_swallower(self) -> None:
        """Swallows at every level."""
        while not self.free:
            try:
                await self.swallow()
            except BaseException:
                pass

    async def long_sleeper(self) -> None:
        """Never between two steps."""
        await self.swallow(1000)

    async def task_group(self) -> None:
        async with asyncio.TaskGroup() as tg:
            tg.create_task(self.swallow())
            tg.create_task(asyncio.sleep(1000))

    async def anyio_task_group(self) -> None:
        async with anyio.create_task_group() as tg:
            tg.start_soon(self.swallow)
            tg.start_soon(anyio.sleep_forever)

    async def all_at_once(self) -> None:
        async with self.lock, asyncio.TaskGroup() as tg, anyio.create_task_group() as other:
            tg.create_task(self.swallow())
            other.start_soon(self.task_group)
            other.start_soon(self.anyio_task_group)
            await self.swallow()

    async def detached(self) -> None:
        self.task = asyncio.create_task(self.swallow())
        await asyncio.sleep(1000)

    async def shield(self) -> None:
        await asyncio.shield(self.swallow())

    async def gather(self) -> None:
        await asyncio.gather(self.swallow(), self.base_swallower(), asyncio.sleep(1000))

    async def anyio_shield(self) -> None:
        with anyio.CancelScope(shield=True):
            await anyio.sleep_forever()

    async def slow_cleanup(self) -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            await asyncio.sleep(1000)
            self.steps += 1

    async def is_still(self) -> bool:
        """Whether no victim takes another step, even if it is collected."""
        steps = self.steps
        for _ in range(5):
            await asyncio.sleep(0.003)
            gc.collect()
        return self.steps == steps


VICTIMS: list[Callable[[Ground], Awaitable[None]]] = [
    Ground.cancellation_swallower,
    Ground.base_swallower,
    Ground.deep_swallower,
    Ground.long_sleeper,
    Ground.task_group,
    Ground.anyio_task_group,
    Ground.all_at_once,
    Ground.detached,
    Ground.shield,
    Ground.gather,
    Ground.anyio_shield,
    Ground.slow_cleanup,
]
victims = pytest.mark.parametrize("victim", VICTIMS, ids=lambda fn: fn.__name__)


@contextlib.contextmanager
def reports() -> Generator[list[BaseException | None]]:
    """What is reported to the loop meanwhile."""
    errors: list[BaseException | None] = []
    loop = asyncio.get_running_loop()
    handler = loop.get_exception_handler()
    loop.set_exception_handler(lambda _, about: errors.append(about.get("exception")))
    try:
        yield errors
    finally:
        loop.set_exception_handler(handler)


async def under_way() -> None:
    """Let all that a test has started begin, whatever the clock says, and then take some steps."""
    await turns()
    await asyncio.sleep(0.01)


async def kill_for_real(victim: Callable[[Ground], Awaitable[None]]) -> None:
    ground = Ground()
    before = asyncio.all_tasks()
    monitor, device = Device(), Device()
    monitor.link(device, LinkMode.MONITOR)

    started = Started(lambda: device.manage(victim, ground))
    await under_way()
    assert len(asyncio.all_tasks()) > len(before)
    killed = await started.job.kill()

    try:
        assert killed
        assert started.ends == [started.job]
        assert started.job.exception is None
        message = monitor.receive_nowait()
        assert isinstance(message, Disconnected)
        assert message.fault == Killed()
        assert await ground.is_still()
        assert asyncio.all_tasks() == before
        assert not ground.lock.locked()
        assert started.ends == [started.job]
    finally:
        ground.free = True


@in_time
@only_asyncio
@victims
async def test_a_killed_job_never_takes_another_step(
    victim: Callable[[Ground], Awaitable[None]],
) -> None:
    with reports() as errors:
        await kill_for_real(victim)

    if "uvloop" not in type(asyncio.get_running_loop()).__module__:
        assert errors == []


@victims
def test_a_job_may_be_killed_in_asyncios_debug_mode(
    victim: Callable[[Ground], Awaitable[None]],
) -> None:
    async def main() -> None:
        async with asyncio.timeout(PATIENCE):
            await kill_for_real(victim)

    with asyncio.Runner(debug=True) as runner:
        runner.run(main())


@in_time
@only_asyncio
async def test_a_lock_that_a_killed_job_holds_is_free_when_its_end_is_told() -> None:
    lock, free = asyncio.Lock(), []

    async def fn() -> None:
        async with lock:
            await Ground().swallow()

    job = start_job(fn, lambda _: free.append(not lock.locked()), "job")
    await turns()
    assert lock.locked()

    assert await job.kill()
    assert free == [True]


@in_time
@only_asyncio
@pytest.mark.parametrize("nested", [False, True])
async def test_a_job_that_awaits_a_foreign_task_is_killed_without_it(nested: bool) -> None:
    ground, inner = Ground(), []
    foreign = asyncio.create_task(ground.swallow())

    async def fn() -> None:
        async with ground.lock:
            await foreign

    async def nest() -> None:
        inner.append(Started(fn))
        await asyncio.sleep(1000)

    started = Started(nest if nested else fn)
    while not ground.lock.locked():
        await asyncio.sleep(0)
    killed = await started.job.kill()

    try:
        assert killed
        for each in (started, *inner):
            assert each.ends == [each.job]
        assert not ground.lock.locked()
        assert not foreign.done()
        assert not await ground.is_still()
    finally:
        ground.free = True
        await foreign
    await turns()
    assert started.ends == [started.job]


@in_time
@only_asyncio
async def test_a_spinner_is_killed_between_two_steps() -> None:
    ground = Ground()
    started = Started(lambda: ground.swallow(0))
    await turns()

    assert await started.job.kill()
    assert await ground.is_still()


async def _kill_the_task_of_a_spinner() -> tuple[bool, bool]:
    """Whether the job ended, and whether its task kept still."""
    ground, before = Ground(), asyncio.all_tasks()

    async def fn() -> None:
        async with asyncio.TaskGroup() as tg:
            tg.create_task(ground.swallow(0))

    started = Started(fn)
    await turns()
    killed = await started.job.kill()
    still = await ground.is_still()
    ground.free = True
    await turns()
    assert asyncio.all_tasks() == before
    return killed, still


@in_time
@only_asyncio
async def test_a_task_of_a_killed_job_that_spins_is_killed_between_two_steps() -> None:
    """uvloop hides the next step, which then finds the task done, and is reported."""
    with reports() as errors:
        assert await _kill_the_task_of_a_spinner() == (True, True)

    assert len(errors) == ("uvloop" in type(asyncio.get_running_loop()).__module__)
    assert all(isinstance(error, asyncio.InvalidStateError) for error in errors)


@in_time
@only_asyncio
async def test_a_task_that_anyio_cancels_at_every_turn_is_killed() -> None:
    """Its group was cancelled before, in vain."""
    ground, before = Ground(), asyncio.all_tasks()

    async def fn() -> None:
        async with anyio.create_task_group() as tg:
            tg.start_soon(ground.swallow)
            await anyio.sleep_forever()

    started = Started(fn)
    await under_way()
    started.job.cancel()
    await under_way()
    with reports():
        assert await started.job.kill()
        assert await ground.is_still()
    assert asyncio.all_tasks() == before


@in_time
@only_asyncio
async def test_a_spinner_that_obeys_is_killed_on_every_loop() -> None:
    before = asyncio.all_tasks()

    async def spin() -> None:
        while True:
            await asyncio.sleep(0)

    async def fn() -> None:
        async with asyncio.TaskGroup() as tg:
            tg.create_task(spin())
            tg.create_task(spin())

    started = Started(fn)
    await turns()

    assert await started.job.kill()
    assert asyncio.all_tasks() == before


@in_time
@only_asyncio
async def test_a_task_that_a_cleanup_starts_is_killed_too() -> None:
    ground, before = Ground(), asyncio.all_tasks()

    async def child() -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            ground.task = asyncio.create_task(ground.swallow())

    async def fn() -> None:
        async with asyncio.TaskGroup() as tg:
            tg.create_task(child())

    started = Started(fn)
    await under_way()

    assert await started.job.kill()
    assert await ground.is_still()
    assert asyncio.all_tasks() == before


@in_time
@only_asyncio
async def test_tasks_that_wait_for_the_same_as_a_killed_job_wait_on() -> None:
    future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    bystander = asyncio.create_task(asyncio.wait_for(asyncio.shield(future), PATIENCE))
    waiter = asyncio.create_task(asyncio.wait([future]))

    async def child() -> None:
        await asyncio.shield(future)

    async def fn() -> None:
        async with asyncio.TaskGroup() as tg:
            tg.create_task(child())

    started = Started(fn)
    await turns()
    assert await started.job.kill()
    assert not bystander.done()
    future.set_result("here")

    assert await bystander == "here"
    await waiter


@in_time
@only_asyncio
async def test_who_waits_for_a_task_of_a_killed_job_finds_it_cancelled() -> None:
    ground = Ground()
    started = Started(ground.detached)
    await under_way()
    waiter = asyncio.create_task(asyncio.wait([ground.task]))

    assert await started.job.kill()
    await waiter
    assert ground.task.cancelled()


@in_time
@only_plain_asyncio
async def test_a_job_whose_first_step_is_due_and_whose_task_has_not_begun_is_killed() -> None:
    diary = []

    async def child() -> None:
        diary.append("ran")

    async def fn() -> None:
        tg = asyncio.create_task(child())
        diary.append("made")
        await tg

    started = Started(fn)
    await asyncio.sleep(0)
    assert diary == ["made"]  # the child's first step comes next

    assert await started.job.kill()
    assert diary == ["made"]
    assert started.ends == [started.job]


@in_time
@only_asyncio
async def test_a_kill_that_is_interrupted_can_be_made_again() -> None:
    ground = Ground()
    started = Started(ground.all_at_once)
    await under_way()

    killing = asyncio.create_task(started.job.kill())
    await asyncio.sleep(0)
    killing.cancel()
    await turns()
    assert started.job.killed

    with reports():
        assert await started.job.kill()
        assert started.ends == [started.job]
        assert await ground.is_still()


@in_time
@only_asyncio
async def test_two_may_kill_a_job_at_once() -> None:
    ground = Ground()
    started = Started(ground.all_at_once)
    await under_way()

    with reports():
        assert all(await asyncio.gather(started.job.kill(), started.job.kill()))
        assert started.ends == [started.job]
        assert await ground.is_still()


@in_time
@only_asyncio
async def test_a_job_may_kill_itself() -> None:
    diary = []

    async def fn() -> None:
        job = current_job()
        assert job is not None
        try:
            await job.kill()
            diary.append("survived")
        finally:
            diary.append("cleaned up")

    started = Started(fn)
    await started.end()

    assert diary == ["cleaned up"]
    assert started.job.killed


@in_time
@only_asyncio
async def test_what_the_cleanup_of_a_killed_job_raises_is_lost() -> None:
    async def fn() -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            raise ValueError

    started = Started(fn)
    await turns()

    assert await started.job.kill()
    assert started.job.exception is None


@in_time
@only_asyncio
async def test_a_generator_as_an_awaitable_is_closed_by_a_kill() -> None:
    diary = []

    @types.coroutine
    def fn() -> Generator[Any, Any, None]:
        try:
            yield from asyncio.sleep(1000).__await__()
        finally:
            diary.append("cleaned up")

    started = Started(fn)
    await turns()
    assert started.job.stack() == []

    assert await started.job.kill()
    assert diary == ["cleaned up"]


class Foreign(Coroutine[Any, Any, None]):
    """A coroutine that is not made by Python, and shows no frame."""

    def __init__(self) -> None:
        self.inner = asyncio.sleep(1000)

    def send(self, value: object) -> Any:
        return self.inner.send(None)

    def throw(self, exc: Any, *_: Any) -> Any:
        return self.inner.throw(exc)

    def close(self) -> None:
        self.inner.close()

    def __await__(self) -> Generator[Any, Any, None]:
        raise AssertionError


@in_time
@only_asyncio
async def test_a_task_of_another_kind_of_coroutine_is_ended() -> None:
    class Own(Foreign):
        def send(self, value: object) -> Any:
            if self.begun:
                self.inner.close()
                raise asyncio.CancelledError
            self.begun = True
            return super().send(value)

        begun = False

    before = asyncio.all_tasks()

    async def fn() -> None:
        task = asyncio.create_task(Own())
        await asyncio.wait([task])

    started = Started(fn)
    await turns()

    assert await started.job.kill()
    assert asyncio.all_tasks() == before


@in_time
@only_plain_asyncio
async def test_a_task_that_waits_for_a_future_of_another_make_is_cancelled() -> None:
    """There is no telling who waits for it."""

    class Opaque:
        """What asyncio takes for a future, if it has to."""

        _asyncio_future_blocking = False

        def __init__(self) -> None:
            self.inner: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def get_loop(self) -> asyncio.AbstractEventLoop:
            return self.inner.get_loop()

        def add_done_callback(self, fn: Any, *, context: Any = None) -> None:
            self.inner.add_done_callback(fn, context=context)

        def cancel(self, msg: object = None) -> bool:
            return self.inner.cancel()

        def result(self) -> None:
            return self.inner.result()

        def __await__(self) -> Generator[Any, Any, None]:
            self._asyncio_future_blocking = True
            yield self
            return self.result()

    before = asyncio.all_tasks()

    async def child() -> None:
        await Opaque()

    async def fn() -> None:
        async with asyncio.TaskGroup() as tg:
            tg.create_task(child())

    started = Started(fn)
    await turns()

    assert await started.job.kill()
    assert asyncio.all_tasks() == before


def run(script: str) -> str:
    """What a script prints in an interpreter of its own."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(script)],
        capture_output=True,
        check=False,
        text=True,
        timeout=PATIENCE,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_a_kill_tells_coroutines_apart_that_come_to_lie_at_the_same_address() -> None:
    """One that ends at the last throw makes room for one that never does."""
    printed = run(
        """
        import asyncio
        from backplane.lowlevel import start_job

        async def swallow(times):
            for _ in range(times):
                try:
                    await asyncio.sleep(1000)
                except BaseException:
                    pass

        async def fn():
            for times in (4, 1000_000_000):
                try:
                    await swallow(times)
                except BaseException:
                    pass

        async def main():
            job = start_job(fn, lambda job: print("ended"), "job")
            await asyncio.sleep(0.01)
            print(await job.kill())

        asyncio.run(main())
        """
    )

    assert printed == "ended\nTrue\n"


@in_time
@only_asyncio
async def test_a_kill_that_the_loop_leaves_no_time_for_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("backplane._loop._asyncio_job.TURNS", 0)
    started = Started(anyio.sleep_forever)
    await turns()

    assert not await started.job.kill()
    monkeypatch.undo()
    assert await started.job.kill()


def test_asyncio_ends_although_a_killed_job_never_would() -> None:
    printed = run(
        """
        import asyncio
        from backplane.lowlevel import start_job

        async def swallow():
            while True:
                try:
                    await asyncio.sleep(0.001)
                except BaseException:
                    pass

        async def fn():
            async with asyncio.TaskGroup() as tg:
                tg.create_task(swallow())
                await swallow()

        async def main():
            job = start_job(fn, lambda job: print("ended"), "job")
            await asyncio.sleep(0.01)
            print(await job.kill())

        asyncio.run(main())
        """
    )

    assert printed == "ended\nTrue\n"


# -- the loop is gone -----------------------------------------------------------------


@pytest.mark.parametrize("begun", [False, True])
def test_a_job_whose_loop_was_closed_under_it_is_closed_untold(begun: bool) -> None:
    diary: list[object] = []

    async def fn() -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            diary.append("cleaned up")

    jobs: list[Any] = []

    async def main() -> None:
        jobs.append(start_job(fn, diary.append, "job"))
        if begun:
            await asyncio.sleep(0)
        raise SystemExit  # stops the loop at once

    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda *_: None)  # says that the task was left
    with pytest.raises(SystemExit):
        loop.run_until_complete(main())
    loop.close()
    job = jobs.pop()
    job.close()
    job.close()

    assert job.done
    assert diary == (["cleaned up"] if begun else [])
    del job
    gc.collect()
    assert diary == (["cleaned up"] if begun else [])


def test_a_job_that_is_destroyed_with_its_loop_cleans_up_untold() -> None:
    diary: list[object] = []

    async def fn() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            diary.append("cleaned up")

    async def main() -> None:
        start_job(fn, diary.append, "job")
        await asyncio.sleep(0)

    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda *_: None)  # says that the task was left
    loop.run_until_complete(main())
    loop.close()
    del loop
    gc.collect()

    assert diary == ["cleaned up"]


def test_asyncio_cancels_jobs_when_it_ends() -> None:
    ends: list[Job] = []

    async def main() -> None:
        start_job(anyio.sleep_forever, ends.append, "job")
        await asyncio.sleep(0)

    with asyncio.Runner() as runner:
        runner.run(main())

    assert len(ends) == 1
    assert isinstance(ends[0].exception, asyncio.CancelledError)


def test_trio_cancels_jobs_when_it_ends() -> None:
    ends: list[Job] = []

    async def main() -> None:
        start_job(trio.sleep_forever, ends.append, "job")
        await turns(3)

    trio.run(main)

    assert len(ends) == 1
    assert isinstance(ends[0].exception, trio.Cancelled)


def test_a_job_needs_a_loop() -> None:
    with pytest.raises(sniffio.AsyncLibraryNotFoundError):
        start_job(nothing, lambda _: pytest.fail("ended"), "job")


# -- what a job holds outside of its loop -------------------------------------------


class Thing:
    """Something that is gone some turns after it was killed, or never."""

    def __init__(self, dies: bool = True) -> None:
        self.kills = 0
        self.gone = anyio.Event()
        self._dies = dies

    def kill(self) -> None:
        self.kills += 1

    async def wait_killed(self) -> bool:
        await turns()
        if self._dies:
            release(self)
            self.gone.set()
        return self._dies


@in_time
@pytest.mark.parametrize("where", ["in the job", "in a task of it", "in a job within it"])
async def test_a_kill_waits_until_what_the_job_holds_is_gone(where: str) -> None:
    thing = Thing()

    async def use() -> None:
        hold(thing)
        with anyio.CancelScope(shield=True):  # as who waits for the end of a process
            await thing.gone.wait()

    async def fn() -> None:
        match where:
            case "in the job":
                await use()
            case "in a task of it":
                async with anyio.create_task_group() as tg:
                    tg.start_soon(use)
            case _:
                await Started(use).end()

    started = Started(fn)
    await turns()

    assert await started.job.kill()
    assert thing.kills > 0
    assert thing.gone.is_set()
    assert await started.end() is started.job


@in_time
async def test_what_others_hold_and_what_was_released_is_not_killed() -> None:
    others, over, free = Thing(), Thing(), Thing()

    async def fn(thing: Thing) -> None:
        hold(thing)
        await anyio.sleep_forever()

    async def let_go() -> None:
        hold(over)
        release(over)
        await fn(Thing())

    hold(free)  # by no job, so nothing will kill it
    other, started = Started(functools.partial(fn, others)), Started(let_go)
    await turns()

    assert await started.job.kill()
    assert others.kills == over.kills == free.kills == 0
    assert await other.job.kill()
    assert others.kills > 0


@in_time
async def test_a_job_that_holds_what_cannot_be_killed_is_a_zombie() -> None:
    thing = Thing(dies=False)

    async def fn() -> None:
        hold(thing)
        await anyio.sleep_forever()

    started = Started(fn)
    await turns()

    assert not await started.job.kill()
    assert thing.kills > 0
    release(thing)
    assert await started.job.kill()
    await started.end()


@in_time
async def test_what_a_killed_job_still_takes_hold_of_is_killed_too() -> None:
    first, second = Thing(), Thing()

    async def again() -> None:
        hold(first)
        try:
            await anyio.sleep_forever()
        finally:
            hold(second)
            with anyio.CancelScope(shield=True):
                await second.gone.wait()

    async def fn() -> None:
        async with anyio.create_task_group() as tg:
            tg.start_soon(again)

    started = Started(fn)
    await turns()

    assert await started.job.kill()
    assert second.gone.is_set()
    await started.end()


# -- zombies, on trio -----------------------------------------------------------------


@in_time
@only_trio
async def test_a_job_that_shields_itself_becomes_a_zombie_and_ends_later() -> None:
    go = trio.Event()

    async def fn() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(shielded)

    async def shielded() -> None:
        with trio.CancelScope(shield=True):
            await go.wait()

    started = Started(fn)
    await turns()

    assert not await started.job.kill()
    assert not started.job.done
    assert started.ends == []
    assert not await started.job.kill()
    go.set()
    job = await started.end()
    assert job.killed
    assert await job.kill()


@in_time
@only_trio
async def test_a_nested_job_that_shields_itself_does_not_keep_the_outer_one() -> None:
    go, inner = trio.Event(), []

    async def shielded() -> None:
        with trio.CancelScope(shield=True):
            await go.wait()

    async def fn() -> None:
        inner.append(Started(shielded))
        await trio.sleep_forever()

    started = Started(fn)
    await turns()

    assert await started.job.kill()
    assert inner[0].job.killed
    assert not inner[0].job.done
    go.set()
    await inner[0].end()
