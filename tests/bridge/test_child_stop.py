"""Stopping child processes, and being cancelled meanwhile: nothing is ever left."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
import threading
from collections.abc import Awaitable, Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest
import sniffio

from backplane.bridge._child import ChildProcess
from backplane.bridge._child_exit import Raised, Returned, Signalled, Stopped
from backplane.bridge._errors import BridgeError

if TYPE_CHECKING:  # mypy knows the tests as single files, pytest as parts of packages
    import child_functions as fns
    from child_world import Until, World, keepers, lives, words
else:
    from . import child_functions as fns
    from .child_world import Until, World, keepers, lives, words

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("world")]
one_loop = pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
three_loops = pytest.mark.parametrize("anyio_backend", ["asyncio", "uvloop", "trio"], indirect=True)
two_loops = pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"], indirect=True)
SOON: dict[str, Any] = {"grace": 0.05, "term_grace": 0.05}


@three_loops
@pytest.mark.parametrize(
    ("fn", "args", "backend", "said"),
    [
        (fns.sleep_async, (), "asyncio", ["asyncio", "True"]),
        (fns.sleep_async, (), "trio", ["trio", "True"]),
        (fns.sleep_plainly, (), "asyncio", ["plain", "True"]),
        (fns.sleep_plainly, (), "trio", ["plain", "True"]),
        (fns.run_a_loop, ("asyncio",), "asyncio", ["asyncio"]),
        (fns.run_a_loop, ("trio",), "asyncio", ["trio"]),
    ],
)
async def test_a_stop_lets_it_clean_up(
    fn: Any, args: tuple[str, ...], backend: Any, said: list[str], path: str
) -> None:
    async with ChildProcess(fn, path, *args, backend=backend, grace=20) as child:
        await Until(lambda: words(path))
        assert await child.stop() == Stopped()

    assert words(path) == [str(child.pid), "end", *said]


@one_loop
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
async def test_an_interrupt_that_a_wait_does_not_see_is_not_lost(backend: Any, path: str) -> None:
    async with ChildProcess(fns.miss_the_interrupt, path, backend=backend, grace=20) as child:
        await Until(lambda: words(path))
        assert await child.stop() == Stopped()

    assert words(path) == [str(child.pid), "end"]


@one_loop
@pytest.mark.parametrize("fn", [fns.fail_in_cleanup, fns.fail_in_plain_cleanup])
async def test_what_its_cleanup_raises_comes_out(fn: Any, path: str) -> None:
    async with ChildProcess(fn, path, grace=20) as child:
        await Until(lambda: words(path))
        end = await child.stop()

    assert isinstance(end, Raised)
    assert isinstance(end.exception, fns.CustomError)


@three_loops
async def test_one_that_hangs_is_killed(path: str) -> None:
    async with ChildProcess(fns.fail_to_stop, path, **SOON) as child:
        await Until(lambda: words(path))
        assert await child.stop() == Signalled(signal.SIGKILL)


@two_loops
async def test_one_that_swallows_cancellation_and_sigterm_is_killed(path: str) -> None:
    async with ChildProcess(fns.swallow_cancellation, path, **SOON) as child:
        await Until(lambda: words(path))
        assert await child.stop() == Signalled(signal.SIGKILL)


@two_loops
async def test_one_that_is_stopped_by_a_signal_is_killed(path: str) -> None:
    async with ChildProcess(fns.sleep_async, path, **SOON) as child:
        await Until(lambda: words(path))
        assert child.pid is not None
        os.kill(child.pid, signal.SIGSTOP)
        assert await child.stop() == Signalled(signal.SIGKILL)


@one_loop
async def test_sigterm_comes_before_sigkill(path: str) -> None:
    async with ChildProcess(fns.hold_the_lock, path, grace=0.05, term_grace=20) as child:
        await Until(lambda: words(path))
        assert await child.stop() == Signalled(signal.SIGTERM)


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    records = [each for each in caplog.records if each.name == "backplane.bridge"]
    return [each.getMessage() for each in records if each.levelno == logging.WARNING]


@three_loops
async def test_each_signal_that_is_sent_is_logged_once(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with ChildProcess(fns.fail_to_stop, path, name="deaf", **SOON) as child:
        await Until(lambda: words(path))
        child.stop_soon()
        assert await child.stop() == Signalled(signal.SIGKILL)

    late = f"process 'deaf' (pid {child.pid}) has not ended 0.05 s after"
    assert warnings_of(caplog) == [f"{late} it was asked to: SIGTERM", f"{late} SIGTERM: SIGKILL"]


@two_loops
async def test_a_signal_to_one_that_lingers_is_logged(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with ChildProcess(fns.linger, path, **SOON) as child:
        await child.wait()

    first = warnings_of(caplog)[0]
    assert first == (
        f"process 'linger' (pid {child.pid}) has not ended 0.05 s after its function had ended: "
        "SIGTERM"
    )


@two_loops
async def test_one_that_ends_when_it_is_asked_or_is_killed_at_once_is_not_logged(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with ChildProcess(fns.sleep_async, path, grace=20) as child:
        await Until(lambda: words(path))
        await child.stop()
    path += "-2"
    async with ChildProcess(fns.fail_to_stop, path, grace=20, term_grace=20) as child:
        await Until(lambda: words(path))
        child.stop_soon()
        child.kill()
        await child.wait()

    assert warnings_of(caplog) == []


@two_loops
async def test_one_that_has_just_ended_is_not_said_not_to_have(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Its keeper is held up by what logs, and so has not buried it."""
    reached, free = threading.Event(), threading.Event()

    class Slow(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            reached.set()
            free.wait(20)

    log, slow = logging.getLogger("backplane.bridge.child"), Slow()
    log.addHandler(slow)
    log.setLevel(logging.INFO)
    try:
        async with ChildProcess(fns.print_and_die, "word", output="log", **SOON) as child:
            await Until(lambda: reached.is_set() and child.pid and not lives(child.pid))
            child.stop_soon()
            await Until(lambda: not any("(stop)" in name for name in keepers()))
            free.set()
            await child.wait()
    finally:
        free.set()
        log.removeHandler(slow)
        log.setLevel(logging.NOTSET)

    assert warnings_of(caplog) == []


@two_loops
async def test_one_that_somebody_kills_is_told(path: str) -> None:
    async with ChildProcess(fns.sleep_plainly, path) as child:
        await Until(lambda: words(path))
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        assert await child.wait() == Signalled(signal.SIGKILL)


@two_loops
@pytest.mark.parametrize("then", ["return", "crash", "sleep", "stopped"])
async def test_its_own_children_end_with_it(then: str, path: str) -> None:
    async with ChildProcess(fns.with_a_grandchild, path, then, **SOON) as child:
        await Until(lambda: words(path))
        pids = [int(word) for word in words(path)]
        assert lives(pids[1]) or then in ("return", "crash")
        if then in ("return", "crash"):
            await child.wait()
        else:
            await child.stop()

    await Until(lambda: not any(map(lives, pids)))


@two_loops
async def test_one_that_does_not_end_after_its_function_is_ended(path: str) -> None:
    async with ChildProcess(fns.linger, path, **SOON) as child:
        assert await child.wait() == Returned("returned")

    assert not lives(int(words(path)[0]))


@one_loop
async def test_a_process_that_has_left_the_group_keeps_nobody_waiting(path: str) -> None:
    async with ChildProcess(fns.leave_the_group, path, output="log") as child:
        assert await child.wait() == Returned("returned")

    await Until(lambda: words(path))
    pid = int(words(path)[0])
    assert lives(pid)
    os.kill(pid, signal.SIGKILL)
    await Until(lambda: not lives(pid))


@two_loops
async def test_leaving_the_block_stops_it(path: str) -> None:
    async with ChildProcess(fns.sleep_async, path, grace=20) as child:
        await Until(lambda: words(path))

    assert words(path)[1:] == ["end", "asyncio", "True"]
    assert child.exit == Stopped()


@two_loops
async def test_leaving_the_block_by_a_cancellation_stops_it(path: str) -> None:
    with anyio.CancelScope() as scope:
        async with ChildProcess(fns.sleep_async, path, grace=20) as child:
            await Until(lambda: words(path))
            scope.cancel()
            await child.wait()

    assert words(path)[1:] == ["end", "asyncio", "True"]
    assert child.exit == Stopped()


@two_loops
async def test_a_stop_before_the_start_and_after_the_end_does_nothing() -> None:
    child = ChildProcess(fns.add, 1)
    child.stop_soon()
    child.kill()
    async with child:
        await child.wait()
        child.stop_soon()
        child.kill()
        assert await child.stop() == Returned(1)


@two_loops
async def test_one_that_is_forgotten_is_killed(path: str) -> None:
    child = ChildProcess(fns.sleep_async, path)
    await child.start()
    pid, keeper = child.pid, child._keeper
    assert pid is not None
    assert keeper is not None
    with pytest.warns(ResourceWarning, match="process 'sleep_async' was forgotten"):
        del child

    await keeper.wait_over()
    assert not lives(pid)


class Suspensions:
    """Awaits something, and does something else each time that it suspends."""

    def __init__(self, awaitable: Awaitable[Any], then: Callable[[int], object]) -> None:
        self._inner = awaitable.__await__()
        self._then = then

    def __await__(self) -> Generator[Any, Any, Any]:
        step: Callable[[], Any] = lambda: next(self._inner)  # noqa: E731
        count = 0
        while True:
            try:
                asked = step()
            except StopIteration as stop:
                return stop.value
            count += 1
            self._then(count)
            try:
                value = yield asked
            except BaseException as error:
                step = lambda error=error: self._inner.throw(error)  # type: ignore[misc]  # noqa: E731
            else:
                step = lambda value=value: self._inner.send(value)  # type: ignore[misc]  # noqa: E731


async def cancelled_at(number: int, fn: Callable[[], Awaitable[object]]) -> bool:
    """Run something, cancel it at a suspension; tell whether it suspends so often."""
    reached = False
    if sniffio.current_async_library() == "asyncio":
        task = asyncio.current_task()
        assert task is not None

        def then(count: int) -> None:
            nonlocal reached
            if count == number:
                reached = True
                # The task's own cancellation, which no shield holds off.
                asyncio.get_running_loop().call_soon(task.cancel)

        try:
            await Suspensions(fn(), then)
        except asyncio.CancelledError:
            task.uncancel()
        if reached and task.cancelling():  # it was over before
            task.uncancel()
            try:
                await asyncio.sleep(0)
            except asyncio.CancelledError:
                pass
        return reached

    with anyio.CancelScope() as scope:

        def then_here(count: int) -> None:
            nonlocal reached
            if count == number:
                reached = True
                scope.cancel()

        await Suspensions(fn(), then_here)
    return reached


@three_loops
async def test_a_start_that_is_cancelled_at_any_await_leaves_nothing(world: World) -> None:
    number = 0
    while True:
        number += 1
        child = ChildProcess(fns.add, 1)
        reached = await cancelled_at(number, child.start)
        if not reached:
            break
        if not child.over:  # it was cancelled too late to fail
            await child.stop()
        child.close()
        world.check()
    await child.stop()
    child.close()
    assert number > 3


@pytest.mark.heavy
@two_loops
async def test_a_block_that_is_cancelled_at_any_await_leaves_nothing(world: World) -> None:
    async def block() -> None:
        async with ChildProcess(fns.add, 1) as child:
            await child.wait()

    number = 1
    while await cancelled_at(number, block):
        world.check()
        number += 1
    assert number > 5


@pytest.mark.heavy
@two_loops
async def test_ten_that_hang_are_stopped_at_once(tmp_path: Path) -> None:
    async def one(path: str) -> None:
        async with ChildProcess(fns.fail_to_stop, path, **SOON) as child:
            await Until(lambda: words(path))
            assert await child.stop() == Signalled(signal.SIGKILL)

    async with anyio.create_task_group() as tg:
        for number in range(10):
            tg.start_soon(one, str(tmp_path / f"{number}"))


@one_loop
async def test_signals_that_the_parent_blocks_or_ignores_reach_it(path: str) -> None:
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGINT])
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        async with ChildProcess(fns.sleep_plainly, path, grace=20) as child:
            await Until(lambda: words(path))
            assert await child.stop() == Stopped()
    finally:
        signal.signal(signal.SIGINT, before)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


@one_loop
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("fn", [fns.sleep_async, fns.sleep_plainly])
async def test_an_interrupt_that_nobody_asked_for_is_an_error(
    fn: Any, backend: Any, path: str
) -> None:
    async with ChildProcess(fn, path, backend=backend) as child:
        await Until(lambda: words(path))
        assert child.pid is not None
        os.kill(child.pid, signal.SIGINT)
        end = await child.wait()

    assert isinstance(end, Raised)
    assert str(end.exception).startswith("builtins.KeyboardInterrupt")


@one_loop
async def test_a_lack_of_descriptors_is_an_error_and_leaves_nothing(world: World) -> None:
    async with ChildProcess(fns.add, 1) as child:
        await child.wait()  # imports take files too
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = max(map(int, os.listdir("/proc/self/fd"))) + 64
    kinds = set()
    for room in range(48):
        child = ChildProcess(fns.add, 1, output="log")
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        filling = list(filled())
        for fd in filling[:room]:
            os.close(fd)
        try:
            await child.start()
            kinds.add("none")
        except (OSError, BridgeError) as error:
            kinds.add(type(error).__name__)
        finally:
            for fd in filling[room:]:
                os.close(fd)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        if child.pid is not None and not child.over:
            await child.stop()
        child.close()
        world.check()
        if "none" in kinds:  # so more files change nothing
            break
    assert kinds == {"OSError", "none"}


def filled() -> Iterator[int]:
    """Open files as long as there may be more."""
    while True:
        try:
            yield os.dup(0)
        except OSError:
            return
