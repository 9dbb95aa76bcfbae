"""A Starlette app whose lifespan is a supervisor: what dies in the background is restarted.

A bad order kills the poller, and a new one goes on behind it; at the second in an hour it is
parked: the app serves on, but ``/tree`` says 503. ``python supervised_web_app.py [asyncio|trio]``

Prints:
    sold for 20
    poller ended: ValueError("invalid literal for int() with base 10: 'n/a'")
    200 app (one_for_one, running)
    └─ poller running, restarted 1x
    sold for 22
    poller ended: ValueError("invalid literal for int() with base 10: '?'")
    poller stays down: more than 1 restarts of all children within 3600 s
    503 app (one_for_one, running)
    └─ poller parked, restarted 1x
"""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
from httpx import ASGITransport, AsyncClient
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from backplane import Failed
from backplane.supervisor import (
    ChildExited,
    ChildParked,
    ChildState,
    Event,
    Exhausted,
    Supervisor,
)

orders: list[str] = []


async def poller() -> None:
    while True:
        while orders:
            print("sold for", int(orders.pop(0)))
        await anyio.sleep(0.01)


def report(event: Event) -> None:
    match event:
        case ChildExited(child=child, fault=Failed(exception=exception)):
            print(child, "ended:", repr(exception))
        case ChildParked(child=child, reason=reason):
            print(child, "stays down:", reason)
        case _:
            pass


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    async with Supervisor(
        [poller],
        max_restarts=1,
        max_seconds=3600,
        exhausted=Exhausted.PARK,
        name="app",
        subscribers=[report],  # by default logging
    ) as app.state.supervisor:
        yield


async def tree(request: Request) -> PlainTextResponse:
    info = request.app.state.supervisor.tree()
    parked = any(child.state is ChildState.PARKED for child in info.children)
    return PlainTextResponse(str(info), 503 if parked else 200)


app = Starlette(routes=[Route("/tree", tree)], lifespan=lifespan)


async def main() -> None:
    async with lifespan(app), AsyncClient(transport=ASGITransport(app), base_url="http://me") as me:
        for new, outcome in (["20", "n/a"], "restarted 1x"), (["22", "?"], "parked"):
            orders.extend(new)
            while outcome not in (answer := await me.get("/tree")).text:  # noqa: ASYNC110
                await anyio.sleep(0.01)
            print(answer.status_code, answer.text)


if __name__ == "__main__":
    anyio.run(main, backend=(sys.argv[1:] or ["asyncio"])[0])
