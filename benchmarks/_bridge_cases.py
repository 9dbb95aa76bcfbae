"""What is measured between two processes, and how each contender is driven."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import anyio
from _harness import Case, On

CALLERS = 64
LINKED = 1000
PATIENCE = 30
"""Seconds within which messages that were sent must arrive."""

Kind = Literal["tcp", "unix"]

calls = {
    "tcp": Case("call.tcp", "a request and its answer, one caller", size=1000, quick_size=20),
    "unix": Case("call.unix", "the same through a Unix socket", size=1000, quick_size=20),
}
many = {
    "tcp": Case(
        "call.64.tcp", "the same, 64 callers at once; each request", size=6400, quick_size=64
    ),
    "unix": Case("call.64.unix", "the same through a Unix socket", size=6400, quick_size=64),
}
tells = {
    "tcp": Case("tell.tcp", "messages that nobody answers, until the last is handled", size=50_000),
    "unix": Case("tell.unix", "the same through a Unix socket", size=50_000),
}
gen_call = Case(
    "gen_call", "a request to a server of the OTP kind, TCP, one caller", size=1000, quick_size=20
)
gen_call_many = Case(
    "gen_call.64", "the same, 64 callers at once; each request", size=6400, quick_size=64
)
first_death = Case(
    "death.first", "kill -9 of the peer, until the first of 1 000 Devices has heard of it",
    size=1, quick_size=1, rounds=15,
)  # fmt: skip
last_death = Case(
    "death.last", "the same, until the last of them has", size=1, quick_size=1, rounds=15
)
runs = Case(
    "process.runs", "a process is started for a function, until that runs",
    size=1, quick_size=1, rounds=15,
)  # fmt: skip
done = Case("process.done", "the same, until its result is here", size=1, quick_size=1, rounds=15)

CASES = [
    calls["tcp"], calls["unix"], many["tcp"], many["unix"], tells["tcp"], tells["unix"],
    gen_call, gen_call_many, first_death, last_death, runs, done,
]  # fmt: skip


# -- the processes at the other end ------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Far:
    """A process at the other end, and where it says that it can be reached."""

    process: subprocess.Popen[bytes]
    addresses: Any


class Fars:
    """Starts them, and ends them."""

    def __init__(self) -> None:
        self.loop = "asyncio"
        self._directory = tempfile.TemporaryDirectory(prefix="bench")
        self._running: dict[tuple[str, str], Far] = {}

    def get(self, target: str, loop: str | None = None) -> Any:
        """The addresses of one that runs a function; it is started if it does not run yet."""
        key = target, loop or self.loop
        if key not in self._running:
            self._running[key] = self.start(*key)
        return self._running[key].addresses

    def start(self, target: str, loop: str | None = None) -> Far:
        """One of one's own."""
        directory = tempfile.mkdtemp(dir=self._directory.name)
        command = [sys.executable, str(Path(__file__).with_name("_bridge_far.py"))]
        pipe = subprocess.PIPE
        with Path(directory, "errors").open("wb") as errors:
            process = subprocess.Popen(
                [*command, target, loop or self.loop, directory],
                stdin=pipe, stdout=pipe, stderr=errors,
            )  # fmt: skip
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            text = Path(directory, "errors").read_text(errors="replace").strip()
            end(process)
            raise RuntimeError(f"the process of {target} has ended: {text.splitlines()[-1:]}")
        return Far(process, json.loads(line))

    def stop(self) -> None:
        """End all."""
        for far in self._running.values():
            end(far.process)
        self._running.clear()
        self._directory.cleanup()


def end(process: subprocess.Popen[bytes]) -> None:
    """End one: it does so by itself when its input ends, but not if it hangs."""
    process.kill()
    process.communicate()


fars = Fars()


# -- contenders --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ends:
    """A connection with the other process."""

    ask: Callable[[int], Awaitable[int]] | None = None
    """Ask `question(number)`; the answer is one more."""
    tell: Callable[[int], Awaitable[object]] | None = None
    """Send so many messages, one after another, as a user would."""
    told: Callable[[], Awaitable[int]] | None = None
    """How many messages the other side has handled."""


Near = Callable[[Kind], AbstractAsyncContextManager[Ends]]


@dataclass(frozen=True, slots=True)
class Kit:
    """How one contender talks with another process."""

    name: str
    on: On
    near: Near
    kinds: tuple[Kind, ...] = ("tcp", "unix")
    part: int = 1
    """It does so much less in each round: the others need not wait for it."""

    def add(self, *, one: bool = True, many_: bool = True, tell: bool = True) -> None:
        """Register it with the cases of calls and messages."""
        for kind in self.kinds:
            if one:
                calls[kind].by(self.name, self.on)(self._measure(kind, ask_in_turn))
            if many_:
                many[kind].by(self.name, self.on)(self._measure(kind, ask_at_once))
            if tell:
                tells[kind].by(self.name, self.on)(self._measure(kind, tell_all))

    def add_servers(self) -> None:
        """Register it with the cases of servers."""
        gen_call.by(self.name, self.on)(self._measure("tcp", ask_in_turn))
        gen_call_many.by(self.name, self.on)(self._measure("tcp", ask_at_once))

    def _measure(
        self, kind: Kind, drive: Callable[[Ends, int], Awaitable[float]]
    ) -> Callable[[int], Awaitable[float]]:
        async def measure(count: int) -> float:
            part = max(count // self.part, 1)
            async with self.near(kind) as ends:
                return await drive(ends, part) * count / part

        return measure


async def ask_in_turn(ends: Ends, count: int) -> float:
    """One caller."""
    assert ends.ask is not None
    await check(ends, 0)
    start = perf_counter()
    for number in range(count):
        await check(ends, number)
    return perf_counter() - start


async def check(ends: Ends, number: int) -> None:
    """One request."""
    assert ends.ask is not None
    answered = await ends.ask(number)
    if answered != number + 1:
        raise ValueError(f"{number} was answered by {answered}")


async def ask_at_once(ends: Ends, count: int) -> float:
    """Many callers."""

    async def caller() -> None:
        for number in range(each):
            await check(ends, number)

    each = -(-count // CALLERS)
    await check(ends, 0)
    start = perf_counter()
    async with anyio.create_task_group() as tasks:
        for _ in range(CALLERS):
            tasks.start_soon(caller)
    return (perf_counter() - start) * count / (each * CALLERS)


async def tell_all(ends: Ends, count: int) -> float:
    """Messages without answers. The other side is asked whether it has handled all."""
    assert ends.tell is not None
    assert ends.told is not None
    before = await ends.told()
    start = perf_counter()
    await ends.tell(count)
    sent = perf_counter()
    while (handled := await ends.told() - before) < count:
        if perf_counter() - sent > PATIENCE:
            break
        await anyio.sleep(0.000_5)
    took = perf_counter() - start
    if handled != count:
        raise ValueError(f"{handled} messages of {count} arrived")
    return took
