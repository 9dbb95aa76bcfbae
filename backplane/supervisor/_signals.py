"""A supervisor as the main thing of a process: stopped by signals, known to systemd.

Nothing here happens by itself. The library touches signals only for as long as
one of these is at work, and puts the handlers back afterwards.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any, Final, final

import anyio

from backplane.lowlevel import Job, start_job

from ._base import BaseSupervisor
from ._errors import NotRunningError, SupervisorError
from ._systemd import notify, ping_watchdog

_logger = logging.getLogger("backplane.supervisor")

STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
"""What a service manager, and a ctrl-C, send to have a process end."""


async def run_service(
    supervisor: BaseSupervisor[Any], *, signals: tuple[signal.Signals, ...] = STOP_SIGNALS
) -> None:
    """Run a supervisor until it ends, or a signal stops it. Meant as the main function.

    The signals act as in ``stop_on_signals``, also while children start. When a
    signal has stopped it, this returns, so the process exits with code 0,
    whether the stop was the ordered or the hard one. Under systemd it says
    ``READY=1`` when all children have started and ``STOPPING=1`` when the stop
    begins, and pings the watchdog if there is one.

    On trio a child that cannot be killed is left behind as a zombie: this
    returns, but ``trio.run`` waits for the child. The handlers are back by then,
    so one more ``SIGTERM`` ends the process.

    Args:
        supervisor: It must not run yet.
        signals: Which to take; ``()`` takes none, and so works in any thread.

    Raises:
        StartError: If a child did not start. All were stopped again.
        MaxRestartsError: If it gave up.
        SupervisorError: If signals are asked for outside the main thread.

    Example:
        A whole program::

            if __name__ == "__main__":
                anyio.run(run_service, Supervisor([server, worker]))
    """
    announcer = _Announcer()
    orders = _obeying(supervisor, signals, announcer.stopping)
    async with orders, beside(ping_watchdog), supervisor:
        announcer.ready()
        try:
            await supervisor.wait()
        finally:
            announcer.stopping()


@asynccontextmanager
async def stop_on_signals(
    supervisor: BaseSupervisor[Any], *signals: signal.Signals
) -> AsyncIterator[None]:
    """Stop a supervisor when the process is told to end.

    The first signal calls for the ordered stop, ``supervisor.stop()``; any
    further one for the hard stop, ``supervisor.stop(timeout=0)``, which kills
    what is left. One that comes when the supervisor does not run (yet, or any
    longer) cancels what is left of the block, so that none is ever lost. Each
    is logged.

    A start that a signal has cut short is no error here: the block is left
    without one. The handlers from before come back with the end of the block.
    Use one at a time: on asyncio, where a loop has one handler for a signal, an
    inner one leaves the default behaviour behind.

    Args:
        supervisor: It is run in the block, or outside of it.
        *signals: Which to take; ``SIGTERM`` and ``SIGINT`` by default.

    Raises:
        SupervisorError: If it is not the main thread that asks, which alone
            can take signals.
        NotImplementedError: On Windows with asyncio, which cannot take them.

    Example:
        With something beside the supervisor::

            async with stop_on_signals(supervisor), supervisor:
                await supervisor.wait()
    """
    async with _obeying(supervisor, signals or STOP_SIGNALS, lambda: None):
        yield


@asynccontextmanager
async def _obeying(
    supervisor: BaseSupervisor[Any],
    signals: tuple[signal.Signals, ...],
    on_first: Callable[[], object],
) -> AsyncIterator[None]:
    if not signals:
        yield
        return
    if threading.current_thread() is not threading.main_thread():
        raise SupervisorError(
            f"cannot stop supervisor {supervisor.name!r} on signals: only the main thread can take "
            "them. Run it there; or take them there yourself and have the loop of this thread call "
            "supervisor.stop(): run_service(..., signals=()) takes none"
        )
    with _received(signals) as received, anyio.CancelScope() as scope:
        orders = _Orders(supervisor, scope, on_first)
        async with beside(partial(orders.obey, received)):
            try:
                yield
            except NotRunningError as error:
                if (error.supervisor, error.attempt) != (supervisor.name, "start"):
                    raise
                if not orders.count:
                    raise


@contextmanager
def _received(signals: tuple[signal.Signals, ...]) -> Iterator[AsyncIterator[signal.Signals]]:
    """Take signals, and put back who took them before, which asyncio does not."""
    before = {number: signal.getsignal(number) for number in signals}
    during: dict[signal.Signals, Any] = {}
    try:
        with anyio.open_signal_receiver(*signals) as received:
            during = {number: signal.getsignal(number) for number in signals}
            yield received
    finally:
        for number, handler in before.items():
            # The same as during: the loop's own, behind which there is nobody any more.
            # None: one that was set from C, and cannot be set from here.
            if handler not in (None, during.get(number), signal.getsignal(number)):
                signal.signal(number, handler)


@final
class _Orders:
    """What a supervisor is told by signals."""

    __slots__ = ("_on_first", "_scope", "_supervisor", "count")

    count: int
    """How many there were."""

    def __init__(
        self,
        supervisor: BaseSupervisor[Any],
        scope: anyio.CancelScope,
        on_first: Callable[[], object],
    ) -> None:
        self._supervisor = supervisor
        self._scope = scope
        self._on_first = on_first
        self.count = 0

    async def obey(self, received: AsyncIterator[signal.Signals]) -> None:
        """Act on each signal, for ever."""
        async for number in received:
            self.count += 1
            name, supervisor = number.name, self._supervisor
            if supervisor.tree().phase == "ended":
                _logger.warning("%s: supervisor %s does not run; leaving", name, supervisor.name)
                self._scope.cancel()
            elif self.count == 1:
                _logger.info("%s: supervisor %s stops", name, supervisor.name)
                self._on_first()
                await _call_for(supervisor.stop)
            else:
                _logger.warning("%s again: supervisor %s kills all", name, supervisor.name)
                await _call_for(partial(supervisor.stop, timeout=0))


async def _call_for(stop: Callable[[], Awaitable[object]]) -> None:
    """Call for a stop and do not wait for it, since another signal may come."""
    with anyio.CancelScope() as scope:
        scope.cancel()  # of the wait: it does not undo the call
        await stop()


@final
class _Announcer:
    """Tells systemd where the service stands; nothing once it has begun to stop."""

    __slots__ = ("_is_stopping",)

    def __init__(self) -> None:
        self._is_stopping = False

    def ready(self) -> None:
        if not self._is_stopping:
            notify("READY=1")

    def stopping(self) -> None:
        if not self._is_stopping:
            self._is_stopping = True
            notify("STOPPING=1")


@asynccontextmanager
async def beside(fn: Callable[[], Awaitable[object]]) -> AsyncIterator[None]:
    """Run an async function beside a block, and cancel it at the end.

    Unlike a task group, it lets the block's exceptions out as they are.
    """
    over = anyio.Event()

    def on_end(job: Job) -> None:
        if isinstance(job.exception, Exception):
            _logger.error("%s failed", job.name, exc_info=job.exception)
        over.set()

    job = start_job(fn, on_end, "service helper")
    try:
        yield
    finally:
        job.cancel()
        with anyio.CancelScope(shield=True):
            await over.wait()
