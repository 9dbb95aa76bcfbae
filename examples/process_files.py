"""Index the words of many files with workers that may die, and lose no line.

Each worker lives under a Device and takes lines from a shared queue. A line
that is not in ``--encoding`` raises, and that really kills the worker. The
supervisor of ``supervisor.py`` hears of it by a link, with the cause: the line
is set aside, and a new worker goes on at the same desk. ``--kill-every`` kills
workers in the middle of good lines, too. In the end the files are counted once
more, in another way: exit code 0 says that the two counts agree.

    python examples/process_files.py           # Python's own library
    python examples/process_files.py --backend trio --kill-every 0.01 FILE...

Prints:
    files      168
    lines      132166 = 132148 indexed + 18 set aside
    words      534613, 27647 different
    workers    8 at a time, 26 in all
    died of    18 x UnicodeDecodeError, first at /usr/lib/python3.11/fractions.py:392
    time       3.1 s
    independent count: agrees
"""

import argparse
import io
import os
import random
import re
import signal
import sys
import time
from collections import deque
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import anyio
from anyio.abc import TaskStatus
from anyio.lowlevel import checkpoint
from lines_of_files import Count, Entry, chunks, count_again, find_files
from supervisor import GaveUp, supervise

from backplane import (
    Cascaded,
    Device,
    Failed,
    Fault,
    Killed,
    Line,
    LinkError,
    LinkMode,
    current_device,
)

CTRL_C = "stopped by Ctrl-C"
WORD = re.compile(r"\w+")


@dataclass
class Desk:
    """Where a worker works. It outlives the worker, and so does what lies on it."""

    entry: Entry | None = None
    worker: Line | None = None


class Job:
    """What the reader and the workers share, and what becomes known about them."""

    def __init__(self, files: list[Path], encoding: str, workers: int) -> None:
        self.files = deque(files)  # the reader is at the first
        self.encoding = encoding
        self.queue: deque[Entry] = deque()
        self.changed = anyio.Event()  # set when the queue is filled or empty
        self.desks = {f"worker {n}": Desk() for n in range(1, workers + 1)}
        self.count = Count()
        self.hired = 0
        self.deaths: dict[str, list[str]] = {}  # by cause: where
        self.problems: list[str] = []  # why the job is not complete

    async def read(self) -> None:
        """The reader: fill the queue with some lines, wait until they are taken, go on."""
        while self.files:
            with closing(chunks(self.files[0])) as source:
                while entries := await anyio.to_thread.run_sync(next, source, None):
                    self.queue.extend(entries)
                    self.wake()
                    while self.queue:
                        await self.changed.wait()
            self.files.popleft()
        self.wake()

    async def work(self, desk: Desk) -> None:
        """A worker: index the line on the desk, or else the next of the queue."""
        self.hired += 1
        desk.worker = current_device().line()
        while entry := desk.entry or await self.take(desk):
            words = WORD.findall(entry.text.decode(self.encoding))
            await checkpoint()  # it can be killed here, in the middle of its line, but not below
            self.count.words.update(words)
            self.count.indexed += 1
            desk.entry = None

    async def take(self, desk: Desk) -> Entry | None:
        """Move a line from the queue to the desk in one step; None if no more will come."""
        while not self.queue:
            if not self.files:
                return None
            await self.changed.wait()
        desk.entry = self.queue.popleft()
        if not self.queue:
            self.wake()
        return desk.entry

    def wake(self) -> None:
        self.changed.set()
        self.changed = anyio.Event()

    def hear(self, name: str, fault: Fault) -> None:
        """A child died: set aside what it failed on, and leave what it was killed at."""
        root = fault.root if isinstance(fault, Cascaded) else fault
        cause = type(root.exception if isinstance(root, Failed) else root).__name__
        if name == "reader":
            place = str(self.files.popleft())
            self.problems.append(f"cannot read {place}: {root}")
        else:
            desk = self.desks[name]
            place = desk.entry.place if desk.entry else "no line"
            if desk.entry and isinstance(fault, Failed):
                self.count.aside.append(desk.entry)
                desk.entry = None
        self.deaths.setdefault(cause, []).append(place)

    async def kill(self, seconds: float) -> None:
        """Now and then, link some worker with a Device that dies."""
        while True:
            await anyio.sleep(seconds)
            if worker := random.choice(list(self.desks.values())).worker:
                power = Device("power")
                with suppress(LinkError):  # the worker has just ended by itself
                    worker.link(power, LinkMode.MONITOR)
                power.disconnect(Killed())

    async def show_progress(self) -> None:
        while True:
            done = f"{self.count.indexed} lines indexed, {len(self.count.aside)} set aside"
            print(f"\x1b[K{done}, {len(self.files)} files to go", end="\r", file=sys.stderr)
            await anyio.sleep(0.1)

    async def stop_at_ctrl_c(self, boss: Line, *, task_status: TaskStatus[None]) -> None:
        with anyio.open_signal_receiver(signal.SIGINT) as signals:
            task_status.started()
            async for _ in signals:
                self.problems.append(CTRL_C)
                boss.shutdown()

    def report(self, files: int, seconds: float) -> None:
        done, aside = self.count, len(self.count.aside)
        print(f"files      {files}")
        print(f"lines      {done.indexed + aside} = {done.indexed} indexed + {aside} set aside")
        print(f"words      {done.words.total()}, {len(done.words)} different")
        print(f"workers    {len(self.desks)} at a time, {self.hired} in all")
        for cause, places in self.deaths.items():
            print(f"died of    {len(places)} x {cause}, first at {places[0]}")
        if self.problems:
            left = len(self.queue) + sum(desk.entry is not None for desk in self.desks.values())
            print(f"left       {left} lines that were read, and {len(self.files)} files")
        print(f"time       {seconds:.1f} s")


async def run(options: argparse.Namespace, files: list[Path]) -> Job:
    job, boss = Job(files, options.encoding, options.workers), Device("boss")
    workers = {name: partial(job.work, desk) for name, desk in job.desks.items()}
    async with anyio.create_task_group() as tasks:
        if sys.platform != "win32":  # there, asyncio can only raise KeyboardInterrupt
            await tasks.start(job.stop_at_ctrl_c, boss.line())
        if sys.stderr.isatty():
            tasks.start_soon(job.show_progress)
        if options.kill_every:
            tasks.start_soon(job.kill, options.kill_every)
        try:
            await supervise(boss, {"reader": job.read, **workers}, options.restarts, job.hear)
        except GaveUp as error:
            job.problems.append(f"gave up {error}")
        tasks.cancel_scope.cancel()
    return job


def main() -> int:
    parser = argparse.ArgumentParser(description="Index the words of files, and lose no line.")
    add = parser.add_argument
    add("paths", nargs="*", type=Path, metavar="FILE", help="or a directory with .py files in it")
    add("--workers", type=int, default=8, metavar="N")
    add("--encoding", choices=["ascii", "utf-8"], default="ascii")
    add("--backend", choices=["asyncio", "trio"], default="asyncio")
    add("--max-files", type=int, default=sys.maxsize, metavar="N", help="take only the first N")
    add("--kill-every", type=float, metavar="SECONDS", help="kill some worker so often")
    add("--restarts", type=int, default=10_000, metavar="N", help="give up after so many")
    add("--list", action="store_true", help="print the lines that were set aside")
    options = parser.parse_args()
    for option in "workers", "max_files", "kill_every", "restarts":
        if (value := vars(options)[option]) is not None and not value > 0:
            parser.error(f"--{option.replace('_', '-')} must be above 0, not {value}")
    found = list(find_files(options.paths or [Path(os.__file__).parent]))
    if problems := [problem for problem in found if isinstance(problem, str)]:
        parser.error("; ".join(problems))
    files = [file for file in found if isinstance(file, Path)][: options.max_files]
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file name may be no text

    start = time.perf_counter()
    job = anyio.run(run, options, files, backend=options.backend)
    print(end="\x1b[K" if sys.stderr.isatty() else "", file=sys.stderr, flush=True)
    job.report(len(files), time.perf_counter() - start)
    job.count.aside.sort()
    for entry in job.count.aside if options.list else ():
        print(f"{entry.place}: {entry.text!r}")
    try:
        again = None if job.problems else count_again(files, options.encoding)
    except OSError as error:
        again, job.problems = None, [str(error)]
    except KeyboardInterrupt:
        again, job.problems = None, [CTRL_C]
    if again is None:
        print("independent count: not made,", "; ".join(dict.fromkeys(job.problems)))
        return 130 if CTRL_C in job.problems else 1
    print("independent count:", "agrees" if job.count == again else "DOES NOT AGREE")
    return 0 if job.count == again else 1


if __name__ == "__main__":
    sys.exit(main())
