"""A program whose child process takes memory until there is none: see test_child_memory.py."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

import anyio

from backplane.bridge import ProcessKilledError, in_process


def be_the_victim() -> int:
    """Take more than there is; the kernel is to choose nobody else."""
    Path("/proc/self/oom_score_adj").write_text("1000")
    return len([os.urandom(1) * (1 << 20) for _ in range(1024)])


def take_within_a_limit() -> int:
    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
    return len(bytearray(1 << 30))


async def main(group: str) -> None:
    Path(group, "cgroup.procs").write_text(str(os.getpid()))  # noqa: ASYNC240
    try:
        await in_process(be_the_victim)()
    except ProcessKilledError as error:
        sys.stdout.write(f"{error.signal_name} {error.out_of_memory} {error}")


if __name__ == "__main__":
    anyio.run(main, sys.argv[1])
