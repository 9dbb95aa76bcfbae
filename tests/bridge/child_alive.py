"""What the tests of ``alive()`` have child processes do."""

from __future__ import annotations

import contextvars
import functools
import os
import signal
import socket
import threading
import time
import tracemalloc
from pathlib import Path

import anyio
import anyio.lowlevel
from anyio.abc import TaskStatus

from backplane.bridge import _child_work, in_process
from backplane.bridge._child_control import Kind, frame
from backplane.lowlevel import on_alive
from backplane.supervisor import ChildSpec, Supervisor, alive


def say(path: str, *words: object) -> None:
    """Append a line to a file: what a test waits for."""
    with Path(path).open("a") as file:
        file.write(" ".join(map(str, words)) + "\n")


def lines(path: str) -> int:
    """How many lines were said."""
    return len(Path(path).read_text().splitlines())


def report() -> str:
    alive()
    return "reported"


async def report_async() -> str:
    alive()
    await anyio.lowlevel.checkpoint()
    return "reported"


def report_from_a_thread() -> str:
    context = contextvars.copy_context()
    thread = threading.Thread(target=context.run, args=(alive,))
    thread.start()
    thread.join()
    return "reported"


async def report_from_a_worker() -> str:
    await anyio.to_thread.run_sync(alive)
    return "reported"


async def report_from_a_task() -> str:
    async with anyio.create_task_group() as tg:
        tg.start_soon(report_async)
    return "reported"


def report_from_a_loop() -> str:
    return anyio.run(report_async)


async def report_from_a_process_below() -> str:
    return await in_process(report)()


async def report_to_a_supervisor_here() -> int:
    """Have a child report to a supervisor of this process; return how often that heard of it."""
    go, done = anyio.Event(), anyio.Event()
    heard: list[object] = []

    async def child() -> None:
        await go.wait()
        alive()
        done.set()
        await anyio.sleep_forever()

    async with Supervisor([ChildSpec("inner", child)]) as supervisor:
        engine = supervisor._engine
        assert engine is not None
        engine.note_alive = heard.append  # type: ignore[assignment, method-assign]
        go.set()
        await done.wait()
    return len(heard)


def report_again_and_again(path: str) -> None:
    say(path, os.getpid())
    while True:
        alive()
        time.sleep(0.02)


async def report_again_and_again_async(path: str) -> None:
    say(path, os.getpid())
    while True:
        alive()
        await anyio.sleep(0.02)


def hang_at_first(path: str) -> None:
    alive()
    say(path, os.getpid())
    if lines(path) == 1:
        time.sleep(1000)
    while True:
        alive()
        time.sleep(0.02)


async def block_at_first(path: str) -> None:
    alive()
    say(path, os.getpid())
    if lines(path) == 1:
        time.sleep(1000)  # noqa: ASYNC251 - on purpose
    while True:
        alive()
        await anyio.sleep(0.02)


async def stop_at_first(path: str) -> None:
    alive()
    say(path, os.getpid())
    if lines(path) == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    while True:
        alive()
        await anyio.sleep(0.02)


async def start_and_block(path: str, size: int, task_status: TaskStatus[bytes]) -> str:
    """Start with much, and never let the loop send the rest of it."""
    task_status.started(size * b"x")
    while lines(path) == 1:
        time.sleep(0.01)  # noqa: ASYNC251 - on purpose
        alive()
    return "returned"


def report_much(count: int) -> float:
    began = time.monotonic()
    for _ in range(count):
        alive()
    return time.monotonic() - began


async def report_much_async(count: int) -> float:
    return report_much(count)


def report_in_vain(path: str, count: int) -> int:
    """Send each report, although nobody reads; return by how much memory has grown."""
    _child_work._PAUSE = 0
    alive()
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for _ in range(count):
        alive()
    now, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    say(path, "done")
    return now - before


async def report_in_vain_async(path: str, count: int) -> int:
    return report_in_vain(path, count)


def report_after_the_end(path: str) -> str:
    """Leave a thread behind that reports."""
    _child_work._PAUSE = 0
    link = on_alive.get().__self__  # type: ignore[attr-defined]
    put_once = link._outbox.put_once

    def late() -> None:
        threading.main_thread().join()
        link._outbox.put_once = functools.partial(say, path, "put")
        alive()
        link._outbox.put_once = put_once
        say(path, "late")

    alive()
    threading.Thread(target=contextvars.copy_context().run, args=(late,)).start()
    return "returned"


def send_a_report(body: bytes) -> str:
    """Send a report on all that might be the private socket, whether or not there is one."""
    data = frame(Kind.ALIVE, body)
    for fd in os.listdir("/proc/self/fd"):
        try:
            sock = socket.socket(fileno=os.dup(int(fd)))
        except OSError:
            continue
        with sock:
            if sock.type == socket.SOCK_STREAM and sock.family == socket.AF_UNIX:
                try:
                    sock.send(data)
                except OSError:
                    pass
    return "returned"
