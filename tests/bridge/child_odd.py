"""What the tests of child processes have them do where something is odd. A program, too."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import anyio

from backplane.bridge import _child_control, in_process
from backplane.bridge._child import ChildProcess
from backplane.bridge._child_exit import Exit


def say(path: str, *words: object) -> None:
    """Append a line to a file: what a test waits for."""
    with Path(path).open("a") as file:
        file.write(" ".join(map(str, words)) + "\n")


class Stays:
    """Something that can be opened only where it was made."""

    def __reduce__(self) -> tuple[Any, ...]:
        return open_in, (os.getpid(),)


def open_in(pid: int) -> None:
    if os.getpid() != pid:
        raise ValueError("not here")


def return_what_stays_there() -> Stays:
    return Stays()


def return_too_much() -> str:
    _child_control.MAX_BODY = 100_000
    return 100_001 * "x"


def wait_until_told(path: str) -> None:
    say(path, os.getpid())
    while "go" not in Path(path).read_text():
        time.sleep(0.01)


def return_when_told(path: str) -> int:
    wait_until_told(path)
    return 1


async def interrupt_when_told(path: str) -> None:
    wait_until_told(path)
    raise KeyboardInterrupt


def close_all_files(path: str) -> None:
    os.closerange(3, 1000)
    say(path, os.getpid())
    time.sleep(1000)


def double_beside_a_sleeper(number: int) -> int:
    sleeper = subprocess.Popen(["sleep", "1000"])
    time.sleep(0.05)
    sleeper.returncode = 0  # it is left alone on purpose
    return 2 * number


def print_for_ever() -> None:
    while True:
        os.write(1, 1000 * b"y\n")


def sleep_plainly() -> None:
    time.sleep(1000)


def fork_beside_a_child() -> tuple[int, Exit]:
    """Fork while a child runs; return how the copy, which kills it, and the child have ended."""
    return anyio.run(_fork)


async def _fork() -> tuple[int, Exit]:
    async with ChildProcess(sleep_plainly, grace=100) as child:
        warnings.simplefilter("ignore")  # of the threads
        copy = os.fork()
        if not copy:
            child.kill()
            os._exit(0)
        _, status = os.waitpid(copy, 0)  # noqa: ASYNC222 - there is nothing else to do
        return os.waitstatus_to_exitcode(status), await child.stop()


def print_much(path: str) -> None:
    for number in range(1000):
        print("a line", number)  # noqa: T201
        print("an error", number, file=sys.stderr)  # noqa: T201
    say(path, *(os.readlink(f"/proc/self/fd/{fd}") for fd in range(3)))


async def main(path: str, output: Any) -> None:
    await in_process(print_much, output=output)(path)


if __name__ == "__main__":
    if sys.argv[2] != "full":
        os.closerange(0, 3)
    anyio.run(main, sys.argv[1], sys.argv[2].replace("full", "inherit"))
