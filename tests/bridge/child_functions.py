"""What the tests have child processes do: it must be importable there."""

from __future__ import annotations

import ctypes
import logging
import os
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import anyio
import anyio.lowlevel
import sniffio
from anyio.abc import TaskStatus

from backplane import Device, Failed, LinkMode, current_device
from backplane.bridge import _child_output


class CustomError(Exception):
    """An exception with fields."""

    def __init__(self, what: str, number: int) -> None:
        super().__init__(what, number)
        self.what = what
        self.number = number


class StubbornError(Exception):
    """An exception that can be pickled, but not put together again."""

    def __init__(self, *, what: str) -> None:
        super().__init__(f"it was {what}")


class LocalError(Exception):
    """An exception that cannot be pickled."""

    def __init__(self) -> None:
        super().__init__("with a lock")
        self.lock = threading.Lock()


def say(path: str, *words: object) -> None:
    """Append a line to a file: what a test waits for."""
    with Path(path).open("a") as file:
        file.write(" ".join(map(str, words)) + "\n")


def add(a: int, b: int = 0) -> int:
    return a + b


async def add_later(a: int, b: int = 0) -> int:
    await anyio.sleep(0.001)
    return a + b


def echo(value: Any) -> Any:
    return value


def exit_at_once(code: int) -> NoReturn:
    os._exit(code)


def exit_politely(code: int) -> NoReturn:
    sys.exit(code)


async def exit_from_a_loop(code: int) -> NoReturn:
    await anyio.lowlevel.checkpoint()
    sys.exit(code)


def crash() -> None:
    no_faulthandler()
    ctypes.string_at(0)


async def abort() -> None:
    await anyio.lowlevel.checkpoint()
    no_faulthandler()
    os.abort()


def no_faulthandler() -> None:
    """Print no traceback where one is expected."""
    import faulthandler

    faulthandler.disable()


def kill_myself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def raise_custom() -> NoReturn:
    raise CustomError("it", 3)


async def raise_custom_later() -> NoReturn:
    await anyio.lowlevel.checkpoint()
    raise CustomError("it", 3)


def raise_stubborn() -> NoReturn:
    raise StubbornError(what="stubborn")


def raise_local() -> NoReturn:
    raise LocalError


def raise_interrupt() -> NoReturn:
    raise KeyboardInterrupt("from nowhere")


async def raise_cancelled() -> NoReturn:
    import asyncio

    raise asyncio.CancelledError


def return_a_lock() -> object:
    return threading.Lock()


def return_a_coroutine() -> object:
    return add_later(1)


def fail_to_stop(path: str) -> None:
    """Ignore all that can be ignored, and hold the interpreter lock."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    say(path, os.getpid())
    ctypes.PyDLL(None).sleep(1000)


def hold_the_lock(path: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    say(path, os.getpid())
    ctypes.PyDLL(None).sleep(1000)


async def swallow_cancellation(path: str) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    say(path, os.getpid())
    while True:
        try:
            await anyio.sleep(1000)
        except BaseException:
            continue


async def sleep_async(path: str) -> None:
    say(path, os.getpid())
    try:
        await anyio.sleep(1000)
    finally:
        say(path, "end", sniffio.current_async_library(), current_device().connected)


def sleep_plainly(path: str) -> None:
    try:  # it may be stopped as soon as it has said that it is here
        say(path, os.getpid())
        time.sleep(1000)
    except KeyboardInterrupt:
        say(path, "end", "plain", current_device().connected)
        raise


def miss_the_interrupt(path: str) -> None:
    """Wait in the system without a look at the signal that has come.

    So does every wait, rarely: for a signal that comes between the interpreter's last look
    for one and the system's call.
    """
    signal.siginterrupt(signal.SIGINT, False)  # the system goes on with the read after it
    ends = os.pipe()
    try:
        say(path, os.getpid())
        os.read(ends[0], 1)
    finally:
        say(path, "end")


def run_a_loop(path: str, backend: str) -> None:
    anyio.run(sleep_async_unmanaged, path, backend=backend)


async def sleep_async_unmanaged(path: str) -> None:
    try:  # trio raises a KeyboardInterrupt anywhere
        say(path, os.getpid())
        await anyio.sleep(1000)
    finally:
        say(path, "end", sniffio.current_async_library())


async def fail_in_cleanup(path: str) -> None:
    say(path, os.getpid())
    try:
        await anyio.sleep(1000)
    finally:
        raise CustomError("in the cleanup", 1)


def fail_in_plain_cleanup(path: str) -> None:
    try:
        say(path, os.getpid())
        time.sleep(1000)
    finally:
        raise CustomError("in the cleanup", 1)


def with_a_grandchild(path: str, then: str) -> str:
    """Start a process of one's own, and end in some way or none."""
    sleeper = subprocess.Popen(["sleep", "1000"])
    say(path, os.getpid(), sleeper.pid)
    match then:
        case "return":
            pass
        case "crash":
            crash()
        case "stopped":
            os.kill(sleeper.pid, signal.SIGSTOP)
            os.kill(os.getpid(), signal.SIGSTOP)
        case "holding the lock":
            ctypes.PyDLL(None).sleep(1000)
        case _:
            time.sleep(1000)
    sleeper.returncode = 0  # it is left alone on purpose
    return then


def where() -> tuple[int, int, int, int, bool]:
    return (
        os.getpid(),
        os.getppid(),
        os.getpgid(0),
        os.getsid(0),
        threading.current_thread() is threading.main_thread(),
    )


async def where_async() -> tuple[str, str]:
    import asyncio

    library = sniffio.current_async_library()
    kind = type(asyncio.get_running_loop()).__module__ if library == "asyncio" else library
    return library, kind.partition(".")[0]


def print_and_log(path: str = "") -> None:
    sys.stdout.write("a line\n")
    sys.stderr.write("another\n")
    sys.stdout.buffer.write(b"not \xff text\n")
    logging.getLogger("app.part").warning(
        "careful: %s", 3, extra={"field": [1], "odd": threading.Lock()}
    )
    logging.getLogger("app.part").debug("too fine")
    try:
        raise CustomError("it", 3)
    except CustomError:
        logging.getLogger("app").exception("with a traceback")
    sys.stdout.write("no end of line")
    sys.stdout.flush()


def print_and_die(text: str) -> NoReturn:
    os.write(1, f"{text}\n".encode())
    os._exit(1)


def log_and_die() -> None:
    for number in range(100):
        logging.getLogger("app").warning("%d", number)
    os._exit(1)


def log_much(count: int, size: int) -> int:
    """Log; return how often that has waited for room."""
    waits = 0

    def poll() -> Any:
        nonlocal waits
        waits += 1
        return select.poll()

    watched: Any = SimpleNamespace(poll=poll, POLLOUT=select.POLLOUT)
    _child_output.select = watched  # type: ignore[attr-defined]
    for number in range(count):
        logging.getLogger("app").warning("%d %s", number, "x" * size)
    return waits


async def start_then_sleep(value: object, task_status: TaskStatus[object]) -> None:
    task_status.started(value)
    await anyio.sleep(1000)


def start_and_return(value: object, task_status: TaskStatus[object]) -> str:
    task_status.started(value)
    try:
        task_status.started(value)
    except RuntimeError as error:
        return str(error)
    return "no error"


async def cascade() -> None:
    other = Device("other")
    current_device().link(other, LinkMode.MONITOR)
    other.disconnect(Failed(CustomError("other", 2)))
    await anyio.sleep(1000)


def linger(path: str) -> str:
    """Return, but leave a thread that keeps the interpreter from ending."""
    threading.Thread(target=time.sleep, args=(1000,)).start()
    say(path, os.getpid())
    return "returned"


def leave_the_group(path: str) -> str:
    """Leave a process behind that has left the group, and holds all that can be inherited."""
    pid = os.fork()
    if pid == 0:
        os.setsid()
        say(path, os.getpid())
        time.sleep(30)
        os._exit(0)
    while not Path(path).exists():  # until then it is in the group, and would be killed with it
        time.sleep(0.001)
    return "returned"


def speak_nonsense() -> None:
    import socket

    for fd in os.listdir("/proc/self/fd"):
        try:
            sock = socket.socket(fileno=os.dup(int(fd)))
        except OSError:
            continue
        if sock.type == socket.SOCK_STREAM and sock.family == socket.AF_UNIX:
            try:
                sock.send(b"\xff" * 16)
            except OSError:
                pass
    time.sleep(1000)


def double(number: int, then: str = "") -> int:
    """Do a piece of work; or what the name of a death says."""
    match then:
        case "crash":
            crash()
        case "exit":
            os._exit(7)
        case "kill":
            kill_myself()
        case "raise":
            raise_custom()
        case _:
            pass
    return 2 * number


def crash_once(path: str) -> None:
    """Crash the first time, then stay."""
    say(path, os.getpid())
    if len(Path(path).read_text().splitlines()) == 1:
        crash()
    time.sleep(1000)


async def crash_before_it_starts(task_status: TaskStatus[None]) -> None:
    crash()
    task_status.started()


async def stay_and_start(path: str, task_status: TaskStatus[int]) -> None:
    task_status.started(os.getpid())
    await sleep_async(path)
