"""How long a process takes to run a function, and to bring its result."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
from collections.abc import Awaitable, Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import anyio
from _bridge_cases import done, runs
from _bridge_work import say_when, when
from _harness import Case, Measure

from backplane.bridge import in_process

Times = tuple[float, float, float]
"""Before it was started; when the function ran; when its result was here."""


def by(name: str) -> Callable[[Callable[[], Awaitable[Times]]], None]:
    """Register it with both cases."""

    def register(start: Callable[[], Awaitable[Times]]) -> None:
        def of(case: Case) -> Measure:
            async def measure(_: int) -> float:
                began, ran, over = await start()
                return (ran if case is runs else over) - began

            return measure

        for case in (runs, done):
            case.by(name)(of(case))

    return register


@by("backplane in_process")
async def ours() -> Times:
    began = when()
    ran = await in_process(when)()
    return began, ran, when()


@by("backplane in_process, trio inside")
async def ours_on_trio() -> Times:
    began = when()
    ran = await in_process(when, backend="trio")()
    return began, ran, when()


def process(method: str) -> Callable[[], Awaitable[Times]]:
    async def start() -> Times:
        context: Any = multiprocessing.get_context(method)
        began = when()
        mine, theirs = context.Pipe(duplex=False)
        child = context.Process(target=say_when, args=(theirs,))
        child.start()
        ran = mine.recv()
        child.join()
        over = when()
        theirs.close()
        mine.close()
        return began, ran, over

    return start


METHODS = multiprocessing.get_all_start_methods()

for method in ("spawn", "forkserver"):
    if method in METHODS:
        by(f"multiprocessing.Process, {method}")(process(method))


@by("ProcessPoolExecutor(1), spawn")
async def pool() -> Times:
    began = when()
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
        ran = executor.submit(when).result()
    return began, ran, when()


@by("python -c, prints the time")
async def python() -> Times:
    began = when()
    printed = subprocess.run(  # noqa: ASYNC221
        [sys.executable, "-c", "import time; print(time.monotonic())"],
        capture_output=True, check=True,
    )  # fmt: skip
    return began, float(printed.stdout), when()


@done.by("python -c pass, by anyio")
async def nothing(_: int) -> float:
    began = when()
    await anyio.run_process([sys.executable, "-c", "pass"])
    return when() - began
