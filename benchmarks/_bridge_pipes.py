"""The standard library's ways to talk with another process."""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import AsyncIterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import anyio
from _bridge_cases import Ends, Kind, Kit
from _bridge_work import answer, answer_pipe, answer_queues, question

SPAWN = multiprocessing.get_context("spawn")


@asynccontextmanager
async def pipe(kind: Kind) -> AsyncIterator[Ends]:
    """One caller, who stands still with all else in his loop until the answer is there."""
    mine, theirs = SPAWN.Pipe()
    process = SPAWN.Process(target=answer_pipe, args=(theirs,), daemon=True)
    process.start()
    theirs.close()

    async def ask(number: int) -> int:
        mine.send(("ask", question(number)))
        return int(mine.recv())

    async def told() -> int:
        mine.send(("ask", None))
        return int(mine.recv())

    async def tell(count: int) -> None:
        for number in range(count):
            mine.send(("tell", question(number)))

    try:
        yield Ends(ask, tell, told)
    finally:
        mine.close()
        process.join()


@asynccontextmanager
async def queues(kind: Kind) -> AsyncIterator[Ends]:
    """The same with two queues, each with a thread that writes."""
    asked, answered = SPAWN.Queue(), SPAWN.Queue()
    process = SPAWN.Process(target=answer_queues, args=(asked, answered), daemon=True)
    process.start()

    async def ask(number: int) -> int:
        asked.put(("ask", question(number)))
        return int(answered.get())

    async def told() -> int:
        asked.put(("ask", None))
        return int(answered.get())

    async def tell(count: int) -> None:
        for number in range(count):
            asked.put(("tell", question(number)))

    try:
        yield Ends(ask, tell, told)
    finally:
        asked.put(None)
        process.join()
        for queue in (asked, answered):
            queue.close()
            queue.join_thread()


@asynccontextmanager
async def pool(kind: Kind) -> AsyncIterator[Ends]:
    """A pool of one process; on trio, each caller takes a thread."""
    executor = ProcessPoolExecutor(1, mp_context=SPAWN)
    loop: Any = asyncio.get_running_loop() if asyncio_runs() else None
    limiter = anyio.CapacityLimiter(100)

    async def ask(number: int) -> int:
        if loop is not None:
            return int(await loop.run_in_executor(executor, answer, question(number)))
        future = executor.submit(answer, question(number))
        return await anyio.to_thread.run_sync(future.result, limiter=limiter)

    try:
        yield Ends(ask)
    finally:
        executor.shutdown()


def asyncio_runs() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


@asynccontextmanager
async def old_pool(kind: Kind) -> AsyncIterator[Ends]:
    with SPAWN.Pool(1) as workers:

        async def ask(number: int) -> int:
            return int(workers.apply(answer, (question(number),)))

        yield Ends(ask)


Kit("multiprocessing Pipe, blocking", "any", pipe, ("unix",)).add(many_=False)
Kit("multiprocessing Queue, blocking", "any", queues, ("unix",)).add(many_=False)
Kit("multiprocessing Pool(1), blocking", "any", old_pool, ("unix",), part=5).add(
    many_=False, tell=False
)
Kit("ProcessPoolExecutor(1)", "any", pool, ("unix",), part=5).add(tell=False)
