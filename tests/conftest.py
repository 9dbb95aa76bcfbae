"""What all tests share: the loops they run on, Hypothesis's profiles, no silent errors."""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import os
import sys
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Generic, TypeVar

import anyio
import pytest
import sniffio
import trio
from hypothesis import HealthCheck, settings

from backplane import Device, testing
from backplane.lowlevel import Job

T = TypeVar("T")

# Neither a slow example nor slow drawing is a fault, on a machine that has other things to do.
_PATIENT: dict[str, Any] = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
# What is green in one place with CI set is green in all: new examples are for those who develop.
if os.environ.get("CI"):
    _PATIENT["derandomize"] = True
settings.register_profile("dev", max_examples=50, **_PATIENT)
settings.register_profile("ci", max_examples=1000, **_PATIENT)
settings.load_profile(
    os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "dev")
)

EVERY_LOOP = ["asyncio", "uvloop", "trio"]
if sys.version_info >= (3, 12):
    EVERY_LOOP.insert(1, "eager asyncio")


@pytest.fixture(params=EVERY_LOOP)
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Run an async test on every loop.

    A test that waits for a clock asks for virtual time instead, and one that
    is about a single library for that one::

        @pytest.mark.parametrize("anyio_backend", ["virtual trio"], indirect=True)
    """
    # asyncio's debug mode, which -X dev turns on, doubles the time that all tests take.
    # Its check for calls from foreign threads matters to test_loop.py, which asks for it.
    match request.param:
        case "asyncio":
            return "asyncio", {"debug": False}
        case "eager asyncio":
            return "asyncio", {"debug": False, "loop_factory": _eager_loop}
        case "uvloop":
            if importlib.util.find_spec("uvloop") is None:
                pytest.skip("uvloop is not installed")
            return "asyncio", {"debug": False, "use_uvloop": True}
        case "trio":
            return "trio", {}
        case "virtual asyncio":
            return testing.virtual_backend("asyncio")
        case "virtual trio":
            return testing.virtual_backend("trio")
        case name:
            pytest.fail(f"there is no loop called {name!r}")


def _eager_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.SelectorEventLoop()
    if sys.version_info >= (3, 12):  # the fixture does not ask for it before
        loop.set_task_factory(asyncio.eager_task_factory)
    return loop


def pytest_runtest_logfinish() -> None:
    """Keep what outlives the test out of the next ones' collections, which are cheap thereby."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def no_silent_errors() -> Iterator[None]:
    """Fail the test that leaves an error to the garbage collector.

    That is an exception in a finalizer, or a coroutine that nobody awaits. Both
    are errors by ``filterwarnings``; collecting here blames the test that made
    them, not one that happens to run later.
    """
    yield
    gc.collect()


def _living() -> Counter[str]:
    """How many objects there are that belong to a run of a supervisor."""
    gc.collect()
    return Counter(
        type(thing).__name__
        for thing in gc.get_objects()
        if isinstance(thing, Device | Job)
        or (
            str(type(thing).__module__).startswith("backplane.supervisor")
            and type(thing).__name__.endswith(("Child", "Engine"))
        )
    )


def _threads() -> set[threading.Thread]:
    """All threads, but for those that a library keeps for its next call into one.

    trio never waits for the end of these, and anyio not even when its loop ends.
    """
    kept = ("Trio thread", "AnyIO worker thread")
    return {each for each in threading.enumerate() if not each.name.startswith(kept)}


@pytest.fixture
def nothing_left() -> Iterator[None]:
    """Fail the test that leaves a thread, a Device, or anything of a supervisor's run."""
    objects, threads = _living(), _threads()
    yield
    left = _living() - objects
    assert not left
    assert not _threads() - threads


@pytest.fixture
def rapid_switching() -> Iterator[None]:
    """Let threads take turns so often that they meet in the middle of things."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


class Call(Generic[T]):
    """A call in a task of its own, to be cancelled as the task's library does it.

    It is what a task group starts. When the call is over, it checks that the
    call has left the task as it found it: with as many requests to cancel as
    there were from outside, and none that is still to come. Tests get the class
    from the fixture ``call``::

        async with anyio.create_task_group() as tg:
            receiving = call(device.receive)
            tg.start_soon(receiving)
            await turns(5)
            receiving.cancel()
        assert receiving.cancelled
    """

    value: T
    error: BaseException | None = None

    def __init__(self, fn: Callable[..., Awaitable[T]], *args: object) -> None:
        self._fn = fn
        self._args = args
        self._over = anyio.Event()
        self._requests = 0
        self._scope = trio.CancelScope()
        self._task: asyncio.Task[Any] | None = None

    async def __call__(self) -> None:
        try:
            if sniffio.current_async_library() == "trio":
                with self._scope:
                    await self._run()
            else:
                self._task = asyncio.current_task()
                assert self._task is not None
                for _ in range(self._requests):  # from before it began
                    self._task.cancel()
                try:
                    await self._run()
                except asyncio.CancelledError:
                    if not self._requests:
                        raise  # the test itself is being cancelled
                assert self._task.cancelling() == self._requests
                for _ in range(self._requests):
                    self._task.uncancel()
                await asyncio.sleep(0)  # meets a cancellation that the call has left behind
        finally:
            self._over.set()

    async def _run(self) -> None:
        try:
            self.value = await self._fn(*self._args)
        except BaseException as error:
            self.error = error
            if self.cancelled:
                raise

    def cancel(self) -> None:
        """Cancel the call from outside. It must not be over."""
        assert not self._over.is_set()
        self._requests += 1
        self._scope.cancel()
        if self._task is not None:
            self._task.cancel()

    @property
    def over(self) -> bool:
        """Whether the call has returned or raised."""
        return self._over.is_set()

    @property
    def cancelled(self) -> bool:
        """Whether what came out of the call is its cancellation."""
        return isinstance(self.error, asyncio.CancelledError | trio.Cancelled)

    async def wait(self) -> Call[T]:
        """Wait until the call is over."""
        await self._over.wait()
        return self


@pytest.fixture
def call() -> type[Call[Any]]:
    """The class `Call`: what is in a conftest cannot be imported."""
    return Call
