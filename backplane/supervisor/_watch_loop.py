"""A thread that notices when the event loop is blocked, and by what."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import final

import anyio

from backplane.lowlevel import Parking, new_parking

from ._child import format_frames, frames_of
from ._events import LoopBlocked, LoopEvent, LoopFreed, log_event, publish
from ._spec import check_number


async def watch_loop(
    threshold: float = 1.0,
    *,
    interval: float | None = None,
    subscribers: Iterable[Callable[[LoopEvent], object]] = (log_event,),
) -> None:
    """Have a thread report when the event loop that this runs in is blocked.

    Run it as a child, or in any task; it ends only when it is cancelled, and
    leaves no thread behind. Each blockage is reported once, while it lasts, with
    the stack of the code that blocks; and once more when it is over. The thread
    mends nothing: for that, see ``ping_watchdog``.

    Time in which the whole process was stopped (``SIGSTOP``, a suspended
    machine), or waited for a CPU, is not blamed on the loop: the thread slept as
    long, and the process used no CPU.

    It costs one short turn of the loop, and one of the thread, each interval:
    about 0.1 ms together.

    Args:
        threshold: How many seconds the loop may be overdue.
        interval: Seconds between two looks; a quarter of the threshold by
            default. A blockage is reported at most two intervals after the
            threshold.
        subscribers: Each is called with each event, in the watching thread. One
            that raises harms nobody: that is logged.

    Raises:
        SpecError: If a number makes no sense. No thread was started.
    """
    check_number("threshold", threshold, 0.001)
    pause = threshold / 4 if interval is None else interval
    check_number("interval", pause, 0.0001)
    watch = _Watch(threshold, pause, tuple(subscribers), new_parking())
    thread = threading.Thread(target=watch.run, name=f"watch {watch.thread}", daemon=True)
    thread.start()
    try:
        while True:
            watch.beat()
            await anyio.sleep(pause)
    finally:
        watch.beat()
        watch.over.set()
        with anyio.CancelScope(shield=True):
            # Not by join alone: a subscriber may be slow, or need this very loop.
            while not watch.ended:
                await watch.parking.park()
        thread.join()


@final
class _Watch:
    """What the loop's task and the watching thread share."""

    __slots__ = (
        "_ident", "_interval", "_subscribers", "_threshold", "due", "ended", "over", "parking",
        "thread",
    )  # fmt: skip

    thread: str
    due: float
    """When the loop is to have come round next. Each round sets a later one."""
    over: threading.Event
    """The watch is to end."""
    ended: bool
    """The thread has nothing left to do."""
    parking: Parking
    """Where the task waits for that."""

    def __init__(
        self,
        threshold: float,
        interval: float,
        subscribers: tuple[Callable[[LoopEvent], object], ...],
        parking: Parking,
    ) -> None:
        self._threshold = threshold
        self._interval = interval
        self._subscribers = subscribers
        self._ident = threading.get_ident()
        self.thread = threading.current_thread().name
        self.parking = parking
        self.over = threading.Event()
        self.ended = False
        self.beat()

    def beat(self) -> None:
        """Note that the loop has come round."""
        self.due = time.monotonic() + self._interval

    def run(self) -> None:
        """Watch. This is the thread."""
        try:
            self._watch()
        finally:
            self.ended = True
            self.parking.wake()

    def _watch(self) -> None:
        due, lost, reported = self.due, 0.0, 0.0
        is_last = False
        while not is_last:
            absent = self._wait()
            is_last = self.over.is_set()  # before the look, so that it sees the last round
            lost += absent
            if self.due != due:
                if reported:
                    overdue = self.due - self._interval - due - lost
                    publish(self._subscribers, LoopFreed(self.thread, max(reported, overdue)))
                due, reported = self.due, 0.0
                # The loop may have come round before the process was stopped, or after.
                lost = min(absent, max(0.0, time.monotonic() - due))
            overdue = time.monotonic() - due - lost
            if overdue >= self._threshold and not reported and not is_last:  # nobody would free it
                frames = frames_of(self._ident)
                if self.due == due:  # else they are of what came after
                    reported = overdue
                    stack = format_frames(frames)
                    publish(self._subscribers, LoopBlocked(self.thread, overdue, stack))

    def _wait(self) -> float:
        """Wait for an interval; return for how many seconds the process did not run at all.

        A thread that sleeps too long was stopped, and so was the loop; or the
        loop's thread did not let go of the interpreter, but that uses the CPU.
        """
        began, used = time.monotonic(), time.process_time()
        self.over.wait(self._interval)
        passed = time.monotonic() - began
        return max(0.0, passed - self._interval - (time.process_time() - used))
