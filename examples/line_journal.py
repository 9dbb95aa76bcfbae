"""The journal of ``line_service.py``: what was added, on disk before it is acknowledged.

Additions wait while the batch before them is written and flushed; then they are
a batch themselves, with a single ``fsync`` for all (group commit). Each has an
id of its client's making, and an id is added once: to retry is harmless. Memory
holds only what is on disk, and is made from it anew at each start, so that the
flusher may be killed anywhere.
"""

import os
import threading
from collections import Counter
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import anyio
from anyio.abc import TaskStatus
from line_monkey import MonkeyError, Traps

from backplane.supervisor import alive

BEAT = 0.2  # seconds between two signs of life of a part that has nothing to do


class Entry(NamedTuple):
    """One line of the journal."""

    id: str
    key: str
    n: int

    def encode(self) -> bytes:
        text = f"{self.id} {self.key} {self.n}".encode()
        return b"%08x %s\n" % (crc32(text), text)


def decode(line: bytes) -> Entry | None:
    """The entry of a line; None if the line is not whole."""
    checksum, _, text = line.removesuffix(b"\n").partition(b" ")
    if not line.endswith(b"\n") or checksum != b"%08x" % crc32(text):
        return None
    entry_id, key, n = text.decode().split(" ")
    return Entry(entry_id, key, int(n))


class Waiting:
    """An addition that waits for its batch."""

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.done = anyio.Event()


class Journal:
    """The file, its one writer, and what the file says."""

    def __init__(self, path: Path, traps: Traps) -> None:
        self.path = path
        self.traps = traps
        self.totals: Counter[str] = Counter()  # by key
        self.answers: dict[str, int] = {}  # by id: the total of its key just after it
        self.waiting: list[Waiting] = []
        self.filled = anyio.Event()
        self.life = 0  # of the flusher
        self.lock = threading.Lock()  # held by whoever touches the file
        self.cuts = 0  # how often a torn end was cut off

    async def add(self, entry: Entry) -> int:
        """Add, unless the id is known; return the total once it is on disk."""
        if entry.id not in self.answers:
            waiting = Waiting(entry)
            self.waiting.append(waiting)
            self.filled.set()
            await waiting.done.wait()
        return self.answers[entry.id]

    async def flush(self, *, task_status: TaskStatus[None]) -> None:
        """The flusher: read what is on disk, then write batch after batch.

        On asyncio, one that is stopped leaves its last write running in a
        thread. It must not meddle with what its successor does: hence the number
        of its life, which a write has to show.
        """
        self.life += 1
        life = self.life
        self.waiting = []  # nobody waits any longer: all connections were stopped with it
        self.totals, self.answers = Counter(), {}
        for entry in await anyio.to_thread.run_sync(self.recover, life):
            self.apply(entry)
        task_status.started()
        while True:
            batch = await self.next_batch()
            await self.traps.pass_by("flusher", "with a batch")
            if lines := b"".join(entry.encode() for entry in self.new_entries(batch)):
                await anyio.to_thread.run_sync(self.append, life, lines)
            await self.traps.pass_by("flusher", "before it acknowledges")
            for waiting in batch:
                self.apply(waiting.entry)
                waiting.done.set()

    async def next_batch(self) -> list[Waiting]:
        while True:
            alive()
            if self.waiting:
                batch, self.waiting = self.waiting, []
                return batch
            self.filled = anyio.Event()
            with anyio.move_on_after(BEAT):
                await self.filled.wait()

    def new_entries(self, batch: list[Waiting]) -> list[Entry]:
        """Those that are not on disk yet; a retry may even meet its first try in one batch."""
        entries = {waiting.entry.id: waiting.entry for waiting in batch}.values()
        return [entry for entry in entries if entry.id not in self.answers]

    def apply(self, entry: Entry) -> None:
        if entry.id not in self.answers:
            self.totals[entry.key] += entry.n
            self.answers[entry.id] = self.totals[entry.key]

    def check(self, life: int) -> None:
        if life != self.life:
            raise RuntimeError("the flusher of this write was replaced")

    def append(self, life: int, lines: bytes) -> None:
        """Write, and wait until it is on disk. In a thread."""
        with self.lock:
            self.check(life)
            with self.path.open("ab", buffering=0) as file:
                if self.traps.springs("flusher", "in mid-write"):
                    file.write(lines[: len(lines) - 7])
                    raise MonkeyError("flusher", "in mid-write")
                if file.write(lines) != len(lines):
                    raise OSError(f"{self.path}: the disk is full")
                os.fsync(file.fileno())

    def recover(self, life: int) -> list[Entry]:
        """Read the file, and cut off what was not written to its end. In a thread."""
        with self.lock:
            self.check(life)
            with self.path.open("r+b") as file:
                entries, end = [], 0
                for line in file:
                    entry = decode(line)
                    if entry is None:
                        break
                    entries.append(entry)
                    end += len(line)
                if end < os.fstat(file.fileno()).st_size:
                    file.truncate(end)
                    self.cuts += 1
                os.fsync(file.fileno())
        return entries
