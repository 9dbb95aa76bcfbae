"""An index of words, made by worker processes on two nodes, of which some are killed.

Which files have which words? The files are shared out in pieces. Each piece is the
work of a process of its own (``in_process``), a child of a ``DynamicSupervisor`` on one
of two nodes: this program, and a second one that it starts and reaches by a Unix socket.
A monkey kills workers with ``kill -9`` while they work, and once the whole second node.
The supervisors start the workers again; what the lost node was asked, this one does.
In the end the index is compared with one that a single process makes.

    python word_index.py [--pieces N] [--kills N] [--backend asyncio|trio] [path ...]

Without paths, it reads the modules of Python's standard library.
"""

import argparse
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import anyio

from backplane import Device, Failed
from backplane.bridge import (
    BridgeError,
    Message,
    Node,
    ProcessKilledError,
    Request,
    Retry,
    call,
    in_process,
)
from backplane.supervisor import ChildExited, ChildSpec, DynamicSupervisor, Event, Restart

Index = dict[str, list[str]]
"""The files that a word is in."""

WORD = re.compile(rb"[A-Za-z_]{3,}")


# -- the work, in a process of its own ------------------------------------------------------


def index_registered(paths: list[str], register: Path) -> Index:
    """Make the index of some files, where a monkey can find who does it."""
    mark = register / str(os.getpid())
    mark.touch()
    try:
        return index_files(paths)
    finally:
        mark.unlink()


def index_files(paths: list[str]) -> Index:
    """Make the index of some files."""
    index: defaultdict[str, list[str]] = defaultdict(list)
    for path in paths:
        for word in set(WORD.findall(Path(path).read_bytes())):
            index[word.decode()].append(path)
    return dict(index)


def merge(indexes: list[Index]) -> Index:
    whole: defaultdict[str, list[str]] = defaultdict(list)
    for index in indexes:
        for word, paths in index.items():
            whole[word] += paths
    return {word: sorted(paths) for word, paths in sorted(whole.items())}


# -- a pool of such processes, on either node -------------------------------------------------


class Pool:
    """Does each piece of work in a process of its own, again if that is killed."""

    def __init__(self, processes: int, register: Path) -> None:
        self._register = register
        self._limit = anyio.CapacityLimiter(processes)
        self.kills = 0
        self.supervisor = DynamicSupervisor(
            max_restarts=1000, max_seconds=60, subscribers=[self._note]
        )

    def _note(self, event: Event) -> None:
        if isinstance(event, ChildExited) and isinstance(event.fault, Failed):
            self.kills += isinstance(event.fault.exception, ProcessKilledError)

    async def index(self, paths: list[str]) -> Index:
        """The index of some files."""
        done = anyio.Event()
        results: list[Index] = []
        work = in_process(index_registered)

        async def worker() -> None:
            results.append(await work(paths, self._register))
            done.set()

        async with self._limit:
            await self.supervisor.start_child(
                ChildSpec("worker", worker, restart=Restart.TRANSIENT, shutdown=5)
            )
            await done.wait()
        return results[0]


# -- the second node ---------------------------------------------------------------------------


class Indexer:
    """Answers a list of paths by their index: a port."""

    def __init__(self, pool: Pool, start: Callable[..., object]) -> None:
        self._pool = pool
        self._start = start

    def call(self, request: Request) -> None:
        self._start(self._answer, request, request.open(list[str]))

    async def _answer(self, request: Request, paths: list[str]) -> None:
        try:
            index = await self._pool.index(paths)
            places = {path: number for number, path in enumerate(paths)}
            request.reply({word: [places[path] for path in found] for word, found in index.items()})
        except Exception as error:  # noqa: BLE001 - the one who asked is told
            request.fail(error)

    def tell(self, message: Message) -> None:
        """Nobody tells it anything."""


async def second_node(address: str, processes: int, register: Path) -> None:
    pool, device = Pool(processes, register), Device("indexer")
    async with pool.supervisor, anyio.create_task_group() as tasks, Node("second") as node:
        node.export("indexer", device, port=Indexer(pool, tasks.start_soon))
        await node.listen(address)
        await anyio.sleep_forever()


# -- the first node ------------------------------------------------------------------------------


class Job:
    """The pieces, and what becomes of them."""

    def __init__(self, pieces: list[list[str]], show: bool) -> None:
        self.left = list(enumerate(pieces))
        self.done: dict[int, Index] = {}
        self.by = {"first": 0, "second": 0}
        self.there = 0
        """Pieces that the second node has in hand."""
        self.lost = 0
        self._pieces = len(pieces)
        self._show = show

    def finish(self, number: int, index: Index, node: str) -> None:
        self.done[number] = index
        self.by[node] += 1
        if self._show:
            width = 40 * len(self.done) // self._pieces
            print(f"\r[{'#' * width:40}] {len(self.done)} of {self._pieces} ", end="", flush=True)

    @property
    def over(self) -> bool:
        return len(self.done) == self._pieces


async def work_here(job: Job, pool: Pool) -> None:
    while not job.over:
        if job.left:
            number, paths = job.left.pop()
            job.finish(number, await pool.index(paths), "first")
        else:
            await anyio.sleep(0.01)  # the other node may still be lost


async def work_there(job: Job, node: Node, address: str) -> None:
    """Have the second node do pieces; what it is lost with is to be done again."""
    while not job.over:
        try:
            peer = await node.connect(address, expect="second", retry=Retry(maximum=0.2))
            indexer = await peer.find("indexer")
            while not job.over:
                if not job.left:
                    await anyio.sleep(0.01)
                    continue
                number, paths = job.left.pop()
                job.there += 1
                try:
                    found = await call(indexer, paths, timeout=60, as_type=dict[str, list[int]])
                except BaseException:
                    job.left.append((number, paths))
                    job.lost += 1
                    raise
                finally:
                    job.there -= 1
                index = {word: [paths[each] for each in some] for word, some in found.items()}
                job.finish(number, index, "second")
        except (BridgeError, TimeoutError):
            continue


class Second:
    """The second node, a program of its own."""

    def __init__(self, address: str, processes: int, register: Path, backend: str) -> None:
        self._command = [
            sys.executable, __file__, "--second", address,
            "--processes", str(processes), "--register", str(register), "--backend", backend,
        ]  # fmt: skip
        self.killed = 0
        self._start()

    def _start(self) -> None:
        self._process = subprocess.Popen(self._command)

    def kill(self) -> None:
        """Kill it as the kernel would that is out of memory, and start it again."""
        self._process.kill()
        self._process.wait()
        self.killed += 1
        self._start()

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()


async def monkey(job: Job, kills: int, register: Path, second: Second) -> int:
    """Kill workers of both nodes, and half way through the second node; to how many in vain."""
    missed = 0
    for number in range(kills):
        if number == kills // 2:
            while not job.there and not job.over:  # noqa: ASYNC110
                await anyio.sleep(0.01)
            second.kill()
        victims: list[Path] = []
        while not victims and not job.over:
            await anyio.sleep(random.uniform(0, 0.02))
            victims = list(register.iterdir())  # noqa: ASYNC240 - it is short
        if job.over:
            return missed + kills - number
        victim = random.choice(victims)
        try:
            os.kill(int(victim.name), signal.SIGKILL)
            victim.unlink()
        except (ProcessLookupError, FileNotFoundError):
            missed += 1  # it was quicker
    return missed


async def first_node(options: argparse.Namespace, paths: list[str], directory: Path) -> bool:
    register = directory / "workers"
    register.mkdir()
    address = f"unix://{directory / 'second.sock'}"
    pieces = [paths[start :: options.pieces] for start in range(min(options.pieces, len(paths)))]
    job, pool = Job(pieces, sys.stdout.isatty()), Pool(options.processes, register)
    second = Second(address, options.processes, register, options.backend)
    began = time.perf_counter()
    try:
        async with pool.supervisor, Node("first") as node:
            missed: list[int] = []

            async def kill_some() -> None:
                missed.append(await monkey(job, options.kills, register, second))

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(kill_some)
                tasks.start_soon(work_there, job, node, address)
                for _ in range(options.processes):
                    tasks.start_soon(work_here, job, pool)
    finally:
        second.stop()
    took = time.perf_counter() - began
    index = merge(list(job.done.values()))
    alone = merge([index_files(paths)])
    agree = index == alone
    print(f"{len(paths)} files, {len(index)} words, {took:.1f} s")
    print(f"pieces: {job.by['first']} by the first node, {job.by['second']} by the second")
    print(f"workers killed: {options.kills - sum(missed)}; of the first node's, {pool.kills}")
    print(
        f"the second node killed: {second.killed}; pieces lost with it, and done again: {job.lost}"
    )
    print("the index is the one that a single process makes" if agree else "THE INDEXES DIFFER")
    return agree


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("paths", nargs="*", type=Path, help="files, or directories of .py files")
    parser.add_argument("--pieces", type=int, default=16)
    parser.add_argument("--kills", type=int, default=6)
    parser.add_argument("--processes", type=int, default=2, help="of each node, at once")
    parser.add_argument("--backend", choices=["asyncio", "trio"], default="asyncio")
    parser.add_argument("--second", metavar="ADDRESS", help=argparse.SUPPRESS)
    parser.add_argument("--register", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def files_of(paths: list[Path]) -> list[str]:
    found: list[str] = []
    for path in paths or [Path(os.__file__).parent]:
        found += map(str, sorted(path.rglob("*.py")) if path.is_dir() else [path])
    return found


if __name__ == "__main__":
    options = parsed()
    if options.second:
        anyio.run(
            second_node, options.second, options.processes, options.register,
            backend=options.backend,
        )  # fmt: skip
    else:
        with TemporaryDirectory() as temporary:
            run = partial(first_node, options, files_of(options.paths), Path(temporary))
            sys.exit(not anyio.run(run, backend=options.backend))
