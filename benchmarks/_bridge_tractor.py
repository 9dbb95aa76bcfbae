"""tractor: an actor in a process of its own; trio only."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from importlib import import_module
from typing import Any

from _bridge_work import Counter, question

tractor: Any = import_module("tractor")
HERE = [__name__]
COUNTER = Counter()


async def ask(asked: dict[str, Any]) -> int:
    return COUNTER.answer(asked)


async def how_many() -> int:
    return COUNTER.told


def context(fn: Any) -> Any:
    fn.__annotations__["ctx"] = tractor.Context
    return tractor.context(fn)


@context
async def serve(ctx: Any) -> None:
    """Answer what comes through a stream."""
    await ctx.started()
    async with ctx.open_stream() as stream:
        async for kind, body in stream:
            if kind == "tell":
                COUNTER.take(body)
            else:
                await stream.send(COUNTER.answer(body))


@contextmanager
def path() -> Iterator[None]:
    """Have a new interpreter find this file, too."""
    before = dict(os.environ)
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
    os.environ["PYTHONWARNINGS"] = "ignore"  # it warns of where its sockets will be
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@asynccontextmanager
async def actor(kind: str) -> AsyncIterator[Any]:
    transport = {"unix": "uds"}.get(kind, kind)
    async with tractor.open_nursery(enable_transports=[transport]) as nursery:
        with path():
            portal = await nursery.start_actor("far", enable_modules=HERE)
        yield portal
        await portal.cancel_actor()


@asynccontextmanager
async def near_run(kind: str) -> AsyncIterator[tuple[Any, ...]]:
    """Each request runs a function in a task of its own."""
    async with actor(kind) as portal:

        async def ask_it(number: int) -> int:
            return int(await portal.run(ask, asked=question(number)))

        yield (ask_it,)


@asynccontextmanager
async def near_stream(kind: str) -> AsyncIterator[tuple[Any, ...]]:
    """All goes through one stream, one request at a time."""
    async with (
        actor(kind) as portal,
        portal.open_context(serve) as (opened, _),
        opened.open_stream() as stream,
    ):

        async def request(body: Any) -> int:
            await stream.send(("ask", body))
            return int(await stream.receive())

        async def ask_it(number: int) -> int:
            return await request(question(number))

        async def told() -> int:
            return await request(None)

        async def tell(n: int) -> None:
            for number in range(n):
                await stream.send(("tell", question(number)))

        yield ask_it, tell, told
