"""A program that starts a child process and is then killed: see test_child_parent.py."""

from __future__ import annotations

import fcntl
import os
import signal
import sys

import anyio

from backplane.bridge._child import ChildProcess
from backplane.bridge._child_exit import value_of

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import child_functions


def in_main(path: str) -> str:
    child_functions.say(path, __name__)
    return "found in the main file"


class InMain:
    """Something that only the main file knows."""

    def __init__(self, value: int) -> None:
        self.value = value


def make_in_main(thing: InMain) -> InMain:
    return InMain(thing.value + 1)


async def main(path: str, then: str, how: str) -> None:
    if "no F_SETSIG" in how:
        del fcntl.F_SETSIG
    if then == "main":
        async with ChildProcess(in_main, path) as child:
            child_functions.say(path, await child.wait())
        async with ChildProcess(make_in_main, InMain(3)) as child:
            thing = value_of(await child.wait())
            child_functions.say(path, type(thing) is InMain, thing.value)
        return
    async with ChildProcess(child_functions.with_a_grandchild, path, then):
        if "fork" in how and not os.fork():
            child_functions.say(f"{path}.fork", os.getpid())
            signal.alarm(120)  # longer than any test waits: its end must not be what helps
            signal.pause()
            os._exit(0)
        if "return" in how:
            os._exit(0)
        await anyio.sleep(1000)


if __name__ == "__main__":
    anyio.run(main, sys.argv[1], sys.argv[2], sys.argv[3])
