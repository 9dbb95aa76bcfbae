"""What the keeper of a child process asks of the system: to start, to tie, to tell of an end."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_GROUP_WAIT = 1.0
"""Seconds that the children of a process are waited for, which only the system can reap."""


def interpreter() -> list[str]:
    """What starts an interpreter like this one."""
    from multiprocessing import spawn, util

    if getattr(sys, "frozen", False):
        raise NotImplementedError("a frozen program has no interpreter to start a child with")
    flags: list[str] = util._args_from_interpreter_flags()  # type: ignore[attr-defined]
    # -P: the script's own directory is this package's, nothing is to be imported from there.
    return [os.fsdecode(spawn.get_executable()), *flags, *([] if "-P" in flags else ["-P"])]


def shared(fd: int) -> int | None:
    """What a child is to print to, where this process prints: None for the same."""
    try:
        # A daemon may have closed it, and then opened something else by its number.
        return None if os.get_inheritable(fd) else subprocess.DEVNULL
    except OSError:
        return subprocess.DEVNULL


def tie(lifeline: int, group: int) -> bool:
    """Have the kernel kill a process group when the other end of a pipe is closed."""
    if not hasattr(fcntl, "F_SETSIG"):
        return False
    try:
        fcntl.fcntl(lifeline, fcntl.F_SETOWN, -group)
        fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
        flags = fcntl.fcntl(lifeline, fcntl.F_GETFL)
        fcntl.fcntl(lifeline, fcntl.F_SETFL, flags | os.O_ASYNC)
    except OSError:
        return False
    return True


def see_group_off(group: int) -> None:
    """Wait until what was in a group that was killed has died: it may hold files, or ports."""
    patience = time.monotonic() + _GROUP_WAIT
    while _group_lives(group) and time.monotonic() < patience:
        time.sleep(0.001)


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except OSError:
        return False
    # Those that nobody has reaped yet count for the kernel, but have nothing any more.
    states = list(_states_of(group))
    return not states or any(state not in "ZX" for state in states)


def _states_of(group: int) -> Iterator[str]:
    """In what states the processes of a group are, where the system tells."""
    with suppress(OSError):
        for pid in filter(str.isdecimal, os.listdir("/proc")):
            with suppress(OSError):
                stat = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
                state, _, its, *_ = stat.rpartition(")")[2].split()
                if int(its) == group:
                    yield state


def pidfd(pid: int) -> int | None:
    """What becomes readable when a process ends, if the system has such a thing."""
    if not hasattr(os, "pidfd_open"):
        return None
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None
