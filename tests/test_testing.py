"""Virtual time: exact, free, the same on both loops, and honest about real I/O."""

from __future__ import annotations

import asyncio
import math
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import anyio
import anyio.abc
import anyio.from_thread
import anyio.lowlevel
import anyio.to_thread
import pytest
import trio
from trio.testing import MockClock

from backplane import testing

HOUR = 3600.0
PATIENCE = 30.0  # real seconds a jump waits in tests whose threads must be heard first


class Run(Protocol):
    def __call__(
        self, fn: Callable[..., Awaitable[Any]], *args: object, autojump_threshold: float = 0
    ) -> Any: ...


@pytest.fixture(params=["asyncio", "trio"])
def backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def run(backend: str) -> Run:
    return partial(testing.run, backend=backend)


# The clock


def test_an_hour_of_sleep_takes_no_real_time(run: Run) -> None:
    async def main() -> float:
        await anyio.sleep(HOUR)
        return anyio.current_time()

    began = time.monotonic()
    slept = run(main)

    assert slept == HOUR
    assert time.monotonic() - began < HOUR / 60


def test_the_clock_starts_at_zero_in_each_run(run: Run) -> None:
    async def main() -> tuple[float, float]:
        before = anyio.current_time()
        await anyio.sleep(HOUR)
        return before, anyio.current_time()

    assert run(main) == run(main) == (0.0, HOUR)


def test_the_clock_stands_still_while_code_runs(run: Run) -> None:
    async def main() -> float:
        for _ in range(100):
            await anyio.lowlevel.checkpoint()
        return anyio.current_time()

    assert run(main) == 0.0


def test_timers_fire_in_order_at_their_own_times(run: Run) -> None:
    fired: list[tuple[float, float]] = []

    async def sleeper(delay: float) -> None:
        await anyio.sleep(delay)
        fired.append((delay, anyio.current_time()))

    async def main() -> None:
        async with anyio.create_task_group() as group:
            for delay in (HOUR, 0.1, 1e7, 0.0, 1e-6, 60.5):
                group.start_soon(sleeper, delay)

    run(main)

    assert [delay for delay, _ in fired] == [0.0, 1e-6, 0.1, 60.5, HOUR, 1e7]
    assert [now for _, now in fired] == pytest.approx([0.0, 1e-6, 0.1, 60.5, HOUR, 1e7])


def test_many_ticks_reach_the_hour(run: Run) -> None:
    async def main() -> float:
        for _ in range(3600):
            await anyio.sleep(1)
        return anyio.current_time()

    assert run(main) == HOUR


def test_a_task_that_sleeps_forever_does_not_move_the_clock(run: Run) -> None:
    async def main() -> tuple[float, float]:
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.sleep_forever)
            await anyio.to_thread.run_sync(time.sleep, 0.02)
            unmoved = anyio.current_time()
            await anyio.sleep(HOUR)
            group.cancel_scope.cancel()
        return unmoved, anyio.current_time()

    assert run(main) == (0.0, HOUR)


# Timeouts and cancellation


def test_a_timeout_fires_at_its_deadline(run: Run) -> None:
    async def main() -> float:
        with pytest.raises(TimeoutError), anyio.fail_after(5):
            await anyio.sleep(HOUR)
        return anyio.current_time()

    assert run(main) == 5.0


def test_a_timeout_that_is_not_reached_does_not_fire(run: Run) -> None:
    async def main() -> float:
        with anyio.fail_after(HOUR):
            await anyio.sleep(HOUR - 1)
        return anyio.current_time()

    assert run(main) == HOUR - 1


def test_the_nearest_of_nested_timeouts_fires_first(run: Run) -> None:
    async def main() -> list[tuple[bool, float]]:
        seen = []
        with anyio.move_on_after(60) as outer:
            with anyio.move_on_after(10) as inner:
                await anyio.sleep(HOUR)
            seen.append((inner.cancelled_caught, anyio.current_time()))
            with anyio.move_on_after(2 * HOUR) as inner:
                await anyio.sleep(HOUR)
        seen.append((inner.cancelled_caught, anyio.current_time()))
        seen.append((outer.cancelled_caught, anyio.current_time()))
        return seen

    assert run(main) == [(True, 10.0), (False, 60.0), (True, 60.0)]


def test_a_hang_inside_a_timeout_fails_at_once(run: Run) -> None:
    async def main() -> None:
        with anyio.fail_after(24 * HOUR):
            await anyio.Event().wait()

    with pytest.raises(TimeoutError):
        run(main)


def test_cancelling_wakes_a_sleeper_before_its_time(run: Run) -> None:
    async def main() -> float:
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.sleep, HOUR)
            await anyio.sleep(1)
            group.cancel_scope.cancel()
        return anyio.current_time()

    assert run(main) == 1.0


# Results


def test_the_function_gets_its_arguments(run: Run) -> None:
    async def main(*args: object) -> tuple[object, ...]:
        return args

    assert run(main, 1, "two") == (1, "two")


def test_an_exception_comes_out_as_itself(run: Run) -> None:
    error = LookupError("the very one")

    async def main() -> None:
        await anyio.sleep(1)
        raise error

    with pytest.raises(LookupError) as caught:
        run(main)
    assert caught.value is error


def test_asyncio_is_the_default_backend() -> None:
    async def main() -> bool:
        return asyncio.get_running_loop().time() == 0.0

    assert testing.run(main)


def test_an_unknown_backend_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="'uvloop': use 'asyncio' or 'trio'"):
        testing.run(anyio.sleep, 1, backend="uvloop")


@pytest.mark.parametrize("threshold", [-1.0, math.inf, math.nan])
def test_a_threshold_that_makes_no_sense_is_refused(threshold: float, backend: str) -> None:
    with pytest.raises(ValueError, match=f"not {threshold}"):
        testing.virtual_backend(backend, autojump_threshold=threshold)
    with pytest.raises(ValueError, match=f"not {threshold}"):
        testing.virtual_loop(threshold)


# Threads and sockets


def test_without_a_timer_a_thread_is_waited_for_in_real_time(run: Run) -> None:
    async def main() -> float:
        await anyio.to_thread.run_sync(time.sleep, 0.02)
        return anyio.current_time()

    assert run(main) == 0.0


def test_with_a_timer_the_clock_does_not_wait_for_a_thread(run: Run) -> None:
    release = threading.Event()

    async def main() -> bool:
        with anyio.move_on_after(HOUR) as scope:
            await anyio.to_thread.run_sync(release.wait, PATIENCE, abandon_on_cancel=True)
        release.set()
        return scope.cancelled_caught

    assert run(main)


def test_a_threshold_gives_a_thread_time_to_answer(run: Run) -> None:
    async def main() -> float:
        with anyio.fail_after(HOUR):
            await anyio.to_thread.run_sync(time.sleep, 0.02)
        return anyio.current_time()

    assert run(main, autojump_threshold=PATIENCE) == 0.0


def test_a_thread_may_sleep_in_the_loop_despite_a_threshold(run: Run) -> None:
    async def main() -> float:
        await anyio.to_thread.run_sync(anyio.from_thread.run, anyio.sleep, HOUR)
        return anyio.current_time()

    assert run(main, autojump_threshold=0.01) == HOUR


def test_a_foreign_thread_wakes_an_asyncio_loop_before_a_far_timer() -> None:
    async def main() -> float:
        loop = asyncio.get_running_loop()
        woken = asyncio.Event()
        far = loop.call_later(HOUR, woken.set)
        waker = threading.Timer(0.02, loop.call_soon_threadsafe, [woken.set])
        waker.start()
        await woken.wait()
        far.cancel()
        waker.join()
        return loop.time()

    assert testing.run(main, autojump_threshold=PATIENCE) == 0.0


def test_a_foreign_thread_wakes_trio_before_a_far_timer() -> None:
    async def main() -> float:
        woken = trio.Event()
        token = trio.lowlevel.current_trio_token()
        waker = threading.Timer(0.02, token.run_sync_soon, [woken.set])
        waker.start()
        with trio.fail_after(HOUR):
            await woken.wait()
        waker.join()
        return trio.current_time()

    assert testing.run(main, backend="trio", autojump_threshold=PATIENCE) == 0.0


def test_a_real_socket_still_works(run: Run) -> None:
    async def echo(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            await stream.send(await stream.receive())

    async def main() -> bytes:
        listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        async with listener, anyio.create_task_group() as group:
            group.start_soon(listener.serve, echo)
            with anyio.fail_after(HOUR):
                async with await anyio.connect_tcp("127.0.0.1", port) as stream:
                    await stream.send(b"hello")
                    answer = await stream.receive()
            group.cancel_scope.cancel()
        return answer

    assert run(main, autojump_threshold=PATIENCE) == b"hello"


def test_what_is_ready_comes_before_a_jump(run: Run) -> None:
    async def main() -> tuple[bytes, float]:
        async with await anyio.create_udp_socket(local_host="127.0.0.1") as receiver:
            address = receiver.extra(anyio.abc.SocketAttribute.local_address)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                sender.sendto(b"!", address)
            with anyio.fail_after(HOUR):
                packet, _ = await receiver.receive()
        return packet, anyio.current_time()

    assert run(main) == (b"!", 0.0)


# Building blocks


def test_asyncio_without_anyio_sees_the_virtual_clock() -> None:
    async def main() -> tuple[list[float], float]:
        loop = asyncio.get_running_loop()
        called: list[float] = []
        loop.call_later(2, lambda: called.append(loop.time()))
        loop.call_at(1, lambda: called.append(loop.time()))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(HOUR):
                await asyncio.sleep(2 * HOUR)
        return called, loop.time()

    with asyncio.Runner(loop_factory=testing.virtual_loop) as runner:
        assert runner.run(main()) == ([1.0, 2.0], HOUR)


def test_a_timer_at_infinity_can_be_cancelled() -> None:
    async def main() -> bool:
        timer = asyncio.get_running_loop().call_later(math.inf, int)
        timer.cancel()
        await asyncio.sleep(1)
        return timer.cancelled()

    with asyncio.Runner(loop_factory=testing.virtual_loop) as runner:
        assert runner.run(main())


def test_closing_a_runner_waits_for_the_executors_threads() -> None:
    done: list[str] = []

    def work() -> None:
        time.sleep(0.05)
        done.append("late")

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.call_later(0.5, int)  # left behind: it must not hurry anyone
        loop.run_in_executor(None, work)

    with asyncio.Runner(loop_factory=testing.virtual_loop) as runner:
        runner.run(main())

    assert done == ["late"]


def test_an_executor_of_ones_own_works() -> None:
    async def main() -> float:
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1) as pool:
            await loop.run_in_executor(pool, time.sleep, 0.02)
        return loop.time()

    assert testing.run(main) == 0.0


def test_each_trio_backend_has_a_clock_of_its_own() -> None:
    clocks = [testing.virtual_backend("trio")[1]["clock"] for _ in range(2)]

    assert all(isinstance(clock, MockClock) for clock in clocks)
    assert clocks[0] is not clocks[1]


def test_waiting_until_all_are_blocked_ends_before_the_next_timer(run: Run) -> None:
    async def main() -> float:
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.sleep, HOUR)
            await anyio.wait_all_tasks_blocked()
            now = anyio.current_time()
            group.cancel_scope.cancel()
        return now

    assert run(main) < 1


# For users


def python(*args: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    root = Path(testing.__file__).parent.parent
    path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, *args],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_importing_it_loads_neither_asyncio_nor_trio() -> None:
    done = python(
        "-c", "import sys, backplane.testing; print({'asyncio', 'trio'} & set(sys.modules))"
    )

    assert (done.stdout.strip(), done.stderr) == ("set()", "")


def test_the_fixture_from_the_docs_works_with_anyios_pytest_plugin(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    (tmp_path / "test_of_a_user.py").write_text(
        """
import anyio
import pytest
from backplane.testing import virtual_backend

pytestmark = pytest.mark.anyio

@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    return virtual_backend(request.param)

@pytest.fixture
async def half_an_hour():
    await anyio.sleep(1800)
    yield 1800
    await anyio.sleep(1800)

async def test_one(half_an_hour):
    await anyio.sleep(half_an_hour)
    assert anyio.current_time() == 3600

async def test_two():
    assert anyio.current_time() == 0
"""
    )

    done = python("-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=tmp_path)

    assert "4 passed" in done.stdout, done.stdout + done.stderr
