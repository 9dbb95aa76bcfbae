"""Virtual time for tests on asyncio and trio: an hour's sleep costs nothing.

The clock starts at 0 seconds, stands still while code runs, and jumps to the
next timer when there is nothing left to run. Sleeps, timeouts and
``call_later`` see only that clock, so a test is exact and never waits::

    def test_a_child_is_restarted_after_an_hour():
        assert testing.run(scenario, backend="trio") == 3600

`run` does a whole run; `virtual_backend` serves anyio's pytest plugin and
`virtual_loop` an ``asyncio.Runner``; ``trio.run`` takes trio's own
``clock=MockClock(autojump_threshold=0)``, which is all that is used here.

Without any timer nothing jumps: the loop waits in real time for a thread, a
socket or a signal, as it must, and a test whose tasks wait for each other
hangs. Put ``with anyio.fail_after(86400):`` round it, and it fails at once.

Limits:
    * Threads, sockets, subprocesses and signals live in real time. While one
      is awaited, and none has anything to say *yet*, the loop has nothing to
      run: the clock jumps, and a timeout around the wait fires falsely. An
      ``autojump_threshold`` of some hundredths of a second prevents that for
      whatever answers faster; test what really needs the network in real time.
    * ``time.monotonic``, ``time.sleep`` and waits in threads stay real.
    * On asyncio the loop is a selector loop: uvloop has a clock of its own in
      C, which cannot be replaced, and Windows has no subprocesses there.
    * ``anyio.wait_all_tasks_blocked`` polls on asyncio, and each poll moves the
      clock by a tenth of a second. On trio it moves nothing.

Importing this module loads neither asyncio nor trio.
"""

from __future__ import annotations

import math
import selectors
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar, TypeVarTuple

import anyio

if TYPE_CHECKING:  # to import asyncio is for virtual_loop alone
    import asyncio
    from contextvars import Context

__all__ = ["run", "virtual_backend", "virtual_loop"]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


def run(
    fn: Callable[[*Ts], Awaitable[T]],
    *args: *Ts,
    backend: str = "asyncio",
    autojump_threshold: float = 0,
) -> T:
    """Run an async function from start to end in virtual time.

    Like `anyio.run`, each run has an event loop of its own, and here also a
    clock of its own that starts at 0. An exception comes out as itself.

    Args:
        fn: The async function.
        *args: What to call it with.
        backend: "asyncio" or "trio".
        autojump_threshold: See `virtual_backend`.

    Returns:
        What ``fn`` returned.

    Raises:
        ValueError: If there is no such backend, or the threshold is negative
            or not finite. Nothing was run.
        ModuleNotFoundError: If trio is asked for and not installed.

    Example:
        >>> async def sleep_a_day() -> float:
        ...     await anyio.sleep(24 * 3600)
        ...     return anyio.current_time()
        >>> run(sleep_a_day)
        86400.0
        >>> run(sleep_a_day, backend="trio")
        86400.0
    """
    name, options = virtual_backend(backend, autojump_threshold=autojump_threshold)
    if name == "trio":
        import trio

        # Not by anyio.run: up to 4.13 it drops trio's options, and so the clock.
        return trio.run(fn, *args, **options)
    return anyio.run(fn, *args, backend=name, backend_options=options)


def virtual_backend(name: str, *, autojump_threshold: float = 0) -> tuple[str, dict[str, Any]]:
    """Make what anyio needs to run one test in virtual time.

    Meant for the ``anyio_backend`` fixture of anyio's pytest plugin. Call it
    in the fixture, not in ``params``, so that each test has a fresh clock::

        @pytest.fixture(params=["asyncio", "trio"])
        def anyio_backend(request):
            return virtual_backend(request.param)

    Args:
        name: "asyncio" or "trio".
        autojump_threshold: How many seconds of real time must pass without
            anything to run before the clock jumps. 0 suits tests that wait
            only for their own tasks and timers. With threads or sockets take
            the smallest figure within which they surely answer, such as 0.05:
            each jump then takes up to that long.

    Returns:
        The name and the options, for the fixture. `anyio.run` takes them too,
        but up to anyio 4.13 it drops trio's, and so the clock: see `run`.

    Raises:
        ValueError: If there is no such backend, or the threshold is negative
            or not finite.
        ModuleNotFoundError: If trio is asked for and not installed.

    Example:
        >>> name, options = virtual_backend("asyncio")
        >>> anyio.run(anyio.sleep, 3600, backend=name, backend_options=options)
    """
    _check_threshold(autojump_threshold)
    match name:
        case "asyncio":
            return name, {"loop_factory": lambda: virtual_loop(autojump_threshold)}
        case "trio":
            from trio.testing import MockClock

            return name, {"clock": MockClock(autojump_threshold=autojump_threshold)}
        case _:
            raise ValueError(f"no virtual time for backend {name!r}: use 'asyncio' or 'trio'")


def virtual_loop(autojump_threshold: float = 0) -> asyncio.AbstractEventLoop:
    """Make an asyncio event loop whose clock jumps where it would have waited.

    It can be passed as a ``loop_factory`` as it is. Sockets and
    ``call_soon_threadsafe`` work as ever, and are looked at before each jump.

    Args:
        autojump_threshold: See `virtual_backend`.

    Returns:
        A selector event loop. Its ``time()`` starts at 0 seconds.

    Raises:
        ValueError: If the threshold is negative or not finite.

    Example:
        >>> import asyncio
        >>> with asyncio.Runner(loop_factory=virtual_loop) as runner:
        ...     runner.run(asyncio.sleep(3600, "an hour later"))
        'an hour later'
    """
    import asyncio

    _check_threshold(autojump_threshold)
    selector = _AutojumpSelector(autojump_threshold)

    class VirtualLoop(asyncio.SelectorEventLoop):
        def time(self) -> float:
            return selector.now

        def call_at(
            self,
            when: float,
            callback: Callable[[*Ts], object],
            *args: *Ts,
            context: Context | None = None,
        ) -> asyncio.TimerHandle:
            if when == math.inf:
                # anyio.sleep_forever() sets such a timer. asyncio waits a day
                # at most, then looks again: in virtual time a busy loop.
                return asyncio.TimerHandle(when, callback, args, self, context)
            return super().call_at(when, callback, *args, context=context)

        async def shutdown_default_executor(
            self,
            timeout: float | None = None,  # noqa: ASYNC109  (asyncio's signature)
        ) -> None:
            # Runner.close() allows the threads some minutes to end. A jump would
            # use those up at once, so without a timer wait for the threads.
            await super().shutdown_default_executor()

    return VirtualLoop(selector)


class _AutojumpSelector(selectors.DefaultSelector):
    """A selector that moves a clock on instead of waiting for a timer."""

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.now = 0.0
        self._threshold = threshold

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:  # no timer to jump to
            return super().select()
        ready = super().select(min(timeout, self._threshold))
        if not ready:
            self.now += timeout
        return ready


def _check_threshold(seconds: float) -> None:
    if not 0 <= seconds < math.inf:
        raise ValueError(f"autojump_threshold must be finite and not negative, not {seconds!r}")
