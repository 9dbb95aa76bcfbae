"""Whether the peers work here at all: one that fails is left out, and said to be."""

from __future__ import annotations

import asyncio
import inspect

import anyio
import trio
from _harness import Case, Contender, Options
from _otp_cases import CASES
from _otp_libraries import BROKEN, PEERS, is_row_of

FEW = 100
PATIENCE = 60
"""Seconds: more than any of them needs on a slow machine."""


def leave_out_the_unfit(options: Options) -> None:
    """Have each peer do a little of each case, and take those that fail out of it."""
    loop = "trio" if options.loop == "trio" else "asyncio"
    for case in CASES:
        if case.name.startswith(options.only):
            for one in list(case.contenders):
                if one.on in ("any", loop) and any(is_row_of(peer, one.name) for peer in PEERS):
                    _try(case, one, options)


def _try(case: Case, one: Contender, options: Options) -> None:
    async def once() -> None:
        with anyio.fail_after(PATIENCE):
            result = one.measure(min(case.quick_size, FEW))
            if inspect.isawaitable(result):
                await result

    try:
        if options.loop == "trio":
            trio.run(once)
        else:
            asyncio.run(once())
    except Exception as error:
        case.contenders.remove(one)
        BROKEN[f"{one.name} from {case.name}"] = f"it fails: {error!r}"
