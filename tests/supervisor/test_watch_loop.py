"""A blocked event loop is noticed from a thread. In real time."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import anyio
import pytest

from backplane.lowlevel import new_parking
from backplane.supervisor import (
    ChildSpec,
    LoopBlocked,
    LoopEvent,
    LoopFreed,
    SpecError,
    Supervisor,
    _watch_loop,
    log_event,
    watch_loop,
)
from backplane.supervisor._child import frames_of

pytestmark = pytest.mark.anyio

INTERVAL = 0.01


class Witness:
    """A subscriber that keeps what it is told, and tells other threads.

    A busy machine may hold the loop up where no test does.
    """

    def __init__(self) -> None:
        self.events: list[LoopEvent] = []
        self.blocked = threading.Event()
        self.freed = threading.Event()

    def __call__(self, event: LoopEvent) -> None:
        self.events.append(event)
        match event:
            case LoopBlocked():
                self.freed.clear()
                self.blocked.set()
            case LoopFreed():
                self.blocked.clear()
                self.freed.set()

    async def see_freed(self) -> None:
        assert await anyio.to_thread.run_sync(self.freed.wait, 20)

    def seen(self) -> list[tuple[LoopBlocked, LoopFreed]]:
        """All blockages, each of which was told of once, and was over before the next."""
        pairs = []
        for blocked, freed in zip(self.events[::2], self.events[1::2], strict=True):
            assert isinstance(blocked, LoopBlocked)
            assert isinstance(freed, LoopFreed)
            pairs.append((blocked, freed))
        return pairs

    def blames(self, name: str) -> int:
        """How often a function was told to block the loop."""
        told = [event for event in self.events if isinstance(event, LoopBlocked)]
        return sum(f"in {name}\n" in event.stack for event in told)

    def watch(self, threshold: float = 0.05) -> Callable[[], Any]:
        return lambda: watch_loop(threshold, interval=INTERVAL, subscribers=(self,))


def hog(until: threading.Event) -> None:
    """Block the loop until an event has happened."""
    give_up = time.monotonic() + 20
    while not until.is_set():
        assert time.monotonic() < give_up
        time.sleep(0.001)  # the blocking line


async def block(
    witness: Witness, times: int = 1, by: Callable[[threading.Event], None] = hog
) -> None:
    """Block the loop until that is reported: anew if what was reported is the machine's doing."""
    while witness.blames(by.__name__) < times:
        await anyio.sleep(INTERVAL)
        by(witness.blocked)


async def test_a_blocked_loop_is_reported_with_the_line_that_blocks() -> None:
    witness = Witness()

    async with anyio.create_task_group() as tg:
        began = time.monotonic()
        tg.start_soon(witness.watch())
        await block(witness)
        lasted = time.monotonic() - began
        await witness.see_freed()
        tg.cancel_scope.cancel()

    [(blocked, freed)] = [pair for pair in witness.seen() if "in hog\n" in pair[0].stack]
    assert blocked.thread == freed.thread == threading.current_thread().name
    assert 0.05 <= blocked.seconds <= lasted
    assert blocked.seconds <= freed.seconds
    assert "in hog\n    time.sleep(0.001)  # the blocking line\n" in blocked.stack
    assert "in test_a_blocked_loop_is_reported" in blocked.stack


async def test_each_blockage_is_reported_once() -> None:
    witness = Witness()

    def hog_for_longer(until: threading.Event) -> None:
        hog(until)
        time.sleep(10 * INTERVAL)  # looks that must find nothing new

    async with anyio.create_task_group() as tg:
        tg.start_soon(witness.watch())
        for times in (1, 2):
            await block(witness, times, hog_for_longer)
            await witness.see_freed()
        tg.cancel_scope.cancel()

    assert witness.blames("hog") == witness.blames("hog_for_longer") == 2
    assert all(freed.seconds >= blocked.seconds for blocked, freed in witness.seen())


async def test_code_that_does_not_let_go_of_the_interpreter_is_blamed() -> None:
    witness = Witness()

    def keep_the_interpreter(until: threading.Event) -> None:
        while not until.is_set():
            sum(range(5_000_000))

    async with anyio.create_task_group() as tg:
        tg.start_soon(witness.watch())
        await block(witness, by=keep_the_interpreter)
        await witness.see_freed()
        tg.cancel_scope.cancel()

    assert witness.seen()


async def test_a_loop_that_comes_round_is_not_reported() -> None:
    witness = Witness()

    async with anyio.create_task_group() as tg:
        tg.start_soon(witness.watch(threshold=10))
        await anyio.sleep(10 * INTERVAL)
        time.sleep(5 * INTERVAL)  # noqa: ASYNC251 - not for long enough
        await anyio.sleep(5 * INTERVAL)
        tg.cancel_scope.cancel()

    assert witness.events == []


async def test_a_stack_from_after_the_blockage_is_not_reported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked, round_again = threading.Event(), threading.Event()
    witness = Witness()

    def frames_too_late(ident: int) -> list[tuple[FrameType, int]]:
        looked.set()
        assert round_again.wait(20)
        return frames_of(ident)

    monkeypatch.setattr(_watch_loop, "frames_of", frames_too_late)
    async with anyio.create_task_group() as tg:
        tg.start_soon(witness.watch())
        await anyio.sleep(INTERVAL)
        hog(looked)
        await anyio.sleep(5 * INTERVAL)  # the loop has come round by then
        round_again.set()
        tg.cancel_scope.cancel()

    assert witness.events == []


async def test_no_thread_is_left_once_the_watch_is_cancelled() -> None:
    before = set(threading.enumerate())

    async with anyio.create_task_group() as tg:
        tg.start_soon(watch_loop)
        await anyio.sleep(INTERVAL)
        [thread] = set(threading.enumerate()) - before
        assert thread.daemon
        assert thread.name == f"watch {threading.current_thread().name}"
        tg.cancel_scope.cancel()

    assert set(threading.enumerate()) <= before


async def test_an_end_while_the_loop_is_blocked_still_says_that_it_goes_on() -> None:
    witness = Witness()

    async with anyio.create_task_group() as tg:
        tg.start_soon(witness.watch())
        await block(witness)
        tg.cancel_scope.cancel()

    assert witness.seen()


async def test_a_watch_that_ends_reports_no_blockage_of_which_it_could_not_tell_the_end() -> None:
    witness = Witness()
    watch = _watch_loop._Watch(0.05, INTERVAL, (witness,), new_parking())

    watch.due -= 10  # its thread comes to the last look so late
    watch.over.set()
    watch.run()

    assert watch.ended
    assert witness.events == []


async def test_a_slow_subscriber_does_not_hold_the_loop_up_at_the_end() -> None:
    witness, go_on = Witness(), threading.Event()
    turns = 0

    def slow(event: LoopEvent) -> None:
        if isinstance(event, LoopBlocked):
            go_on.wait(20)

    async def turn() -> None:
        nonlocal turns
        for turns in range(5):  # noqa: B007 - it is looked at below
            await anyio.sleep(INTERVAL)
        go_on.set()

    async with anyio.create_task_group() as tg:
        async with anyio.create_task_group() as inner:
            subscribers = (witness, slow)
            inner.start_soon(lambda: watch_loop(0.05, interval=INTERVAL, subscribers=subscribers))
            await anyio.sleep(INTERVAL)
            hog(witness.blocked)
            tg.start_soon(turn)
            inner.cancel_scope.cancel()
        assert turns == 4
    assert not any("watch" in thread.name for thread in threading.enumerate())


async def test_a_subscriber_that_raises_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    witness = Witness()

    def bad(event: LoopEvent) -> None:
        raise ValueError("bad subscriber")

    subscribers = (bad, witness)
    async with anyio.create_task_group() as tg:
        tg.start_soon(lambda: watch_loop(0.05, interval=INTERVAL, subscribers=subscribers))
        await block(witness)
        await witness.see_freed()
        tg.cancel_scope.cancel()

    assert caplog.text.count("ValueError: bad subscriber") == 2 * len(witness.seen()) > 0


async def test_it_works_as_a_child() -> None:
    witness = Witness()
    spec = ChildSpec(
        "watch", watch_loop, (0.05,), kwargs={"interval": INTERVAL, "subscribers": (witness,)}
    )

    async with Supervisor([spec]):
        await block(witness)
        await witness.see_freed()

    assert not any("watch" in thread.name for thread in threading.enumerate())


async def test_by_default_it_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    witness = Witness()
    caplog.set_level(logging.INFO, "backplane.supervisor")

    async with anyio.create_task_group() as tg:
        subscribers = (log_event, witness)
        tg.start_soon(lambda: watch_loop(0.05, interval=INTERVAL, subscribers=subscribers))
        await block(witness)
        await witness.see_freed()
        tg.cancel_scope.cancel()

    assert [vars(record)["event"] for record in caplog.records] == witness.events
    assert witness.seen()
    for blocked, freed in zip(caplog.records[::2], caplog.records[1::2], strict=True):
        assert (blocked.levelno, freed.levelno) == (logging.ERROR, logging.INFO)
        assert "goes on" in freed.getMessage()
    assert "in hog\n" in caplog.text


@pytest.mark.parametrize(
    ("threshold", "interval"), [(0, None), (-1, None), (float("nan"), None), (1, 0), (1, -1)]
)
async def test_numbers_that_make_no_sense_start_no_thread(
    threshold: float, interval: float | None
) -> None:
    before = set(threading.enumerate())

    with pytest.raises(SpecError):
        await watch_loop(threshold, interval=interval)

    assert set(threading.enumerate()) <= before


def test_a_thread_that_has_ended_stands_nowhere() -> None:
    thread = threading.Thread(target=lambda: None)
    thread.start()
    thread.join()

    assert thread.ident is not None
    assert frames_of(thread.ident) == []


SCRIPT = """
import sys
import anyio
from backplane.supervisor import watch_loop

async def main():
    async with anyio.create_task_group() as tg:
        tg.start_soon(lambda: watch_loop(0.5, interval=0.05, subscribers=(print,)))
        await anyio.sleep(0.2)
        print("ready", flush=True)
        await anyio.to_thread.run_sync(sys.stdin.readline)
        await anyio.sleep(0.2)
        tg.cancel_scope.cancel()
    print("done")

anyio.run(main, backend=sys.argv[1])
"""


@pytest.mark.heavy
@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="there is no SIGSTOP")
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_process_that_was_stopped_does_not_blame_its_loop(backend: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, backend],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGSTOP)
        time.sleep(1.5)  # three times as long as the loop may be overdue
        process.send_signal(signal.SIGCONT)
        out, _ = process.communicate("\n", timeout=30)

    assert out == "done\n"
    assert process.returncode == 0
