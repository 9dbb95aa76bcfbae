"""What the tests of child processes share: waiting for the world, and what must not be left."""

from __future__ import annotations

import gc
import os
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Self

import anyio
import pytest

ROOT = Path(__file__).parents[2]


class Until:
    """Wait for what other processes bring about."""

    def __init__(self, condition: Callable[[], object]) -> None:
        self._condition = condition

    def __await__(self) -> Any:
        return self._poll().__await__()

    async def _poll(self) -> None:
        with anyio.fail_after(20):
            while not self._condition():
                await anyio.sleep(0.002)


def lives(pid: int) -> bool:
    """Whether a process is there, and not only waits to be reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def children() -> set[int]:
    """The processes that this one has started, also those that nobody has reaped."""
    found = set()
    for each in Path("/proc").iterdir():
        if each.name.isdecimal():
            try:
                fields = (each / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == os.getpid():
                found.add(int(each.name))
    return found


def words(path: str | Path) -> list[str]:
    """What was said into a file so far; whole lines only."""
    try:
        text = Path(path).read_text()
    except OSError:
        return []
    return text[: text.rfind("\n") + 1].split()


def descriptors() -> Counter[str]:
    """How many files of each kind are open; uvloop makes some anew with each call of it."""
    found: Counter[str] = Counter()
    for each in Path("/proc/self/fd").iterdir():
        try:
            found[os.readlink(each).partition(":")[0]] += 1
        except OSError:
            continue  # the directory itself
    return found


def keepers() -> set[str]:
    """The threads that child processes have here."""
    names = (each.name for each in threading.enumerate())
    return {name for name in names if name.endswith(("(keeper)", "(stop)"))}


class World:
    """Fails the test that leaves a process, a descriptor or a thread.

    To be entered in the loop: uvloop opens files of its own when it is first made.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # Child processes import the tests by the names that they have here.
        monkeypatch.syspath_prepend(ROOT)

    def __enter__(self) -> Self:
        gc.collect()
        self._before = self._things()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.check()

    def check(self) -> None:
        """Fail if anything is left."""
        gc.collect()
        for now, before in zip(self._things(), self._before, strict=True):
            assert now == before, f"now {now}, before {before}"

    def _things(self) -> tuple[set[int], Counter[str], set[str]]:
        return children(), descriptors(), keepers()


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    """Fail the test that leaves anything of a child process."""
    with World(monkeypatch) as world:
        yield world


@pytest.fixture
def path(tmp_path: Path) -> str:
    """Where functions in child processes say what the test is to know."""
    return str(tmp_path / "said")
