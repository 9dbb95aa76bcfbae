"""Child processes that run out of memory: by a limit of their own, and by the kernel's."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from backplane.bridge import in_process

if TYPE_CHECKING:  # mypy knows the tests as single files, pytest as parts of packages
    import child_memory
    from child_world import ROOT
else:
    from . import child_memory
    from .child_world import ROOT

ROOM = 128 << 20
two_loops = pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"], indirect=True)


@pytest.mark.anyio
@pytest.mark.usefixtures("world")
@two_loops
async def test_one_that_may_take_no_more_memory_gets_an_error_and_so_does_its_caller() -> None:
    with pytest.raises(MemoryError):
        await in_process(child_memory.take_within_a_limit)()


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group that has little memory, within that of the tests."""
    try:
        group = small_group(f"backplane-test-{os.getpid()}")
    except (OSError, StopIteration) as error:
        pytest.skip(f"no control group with a limit of memory can be made here: {error}")
    yield group
    group.rmdir()


def small_group(name: str) -> Path:
    fields = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    old = [path for _, controllers, path in fields if "memory" in controllers.split(",")]
    if old:
        group = Path("/sys/fs/cgroup/memory", old[0].lstrip("/"), name)
        limits = {"memory.limit_in_bytes": ROOM, "memory.memsw.limit_in_bytes": ROOM}
    else:
        path = next(path for _, controllers, path in fields if not controllers)
        group = Path("/sys/fs/cgroup", path.lstrip("/"), name)
        limits = {"memory.max": ROOM, "memory.swap.max": 0}
    group.mkdir()
    try:
        for file, limit in limits.items():
            if "sw" not in file or (group / file).exists():  # there may be no swap
                (group / file).write_text(str(limit))
        with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as joins:  # to see whether it may
            (group / "cgroup.procs").write_text(str(joins.pid))
    except BaseException:
        group.rmdir()
        raise
    return group


def test_one_that_the_kernel_kills_for_its_memory_is_known_as_such(group: Path) -> None:
    done = subprocess.run(
        [sys.executable, child_memory.__file__, str(group)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=120,
    )

    assert re.fullmatch(
        r"SIGKILL True process 'be_the_victim' \(pid [0-9]+\) was killed by SIGKILL, "
        "and the kernel ran out of memory meanwhile",
        done.stdout,
    )
