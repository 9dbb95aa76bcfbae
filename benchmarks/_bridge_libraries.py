"""The other libraries that talk between processes, where they are installed."""

from __future__ import annotations

import asyncio
import inspect
import warnings
from collections.abc import Callable
from importlib import import_module, metadata
from typing import Any

import anyio
import trio
from _bridge_cases import CASES, calls, gen_call, gen_call_many, many, tells
from _harness import Case, Contender, Options
from _supervisor_libraries import CASTY, LAPINBEAM, Peer

XOSCAR = Peer("xoscar", "xoscar", "asyncio")
GRPC = Peer("grpcio", "grpc", "asyncio")
TRACTOR = Peer("tractor", "tractor", "trio")
PEERS = [XOSCAR, CASTY, LAPINBEAM, GRPC, TRACTOR]

PATIENCE = 60
"""Seconds: more than any of them needs on a slow machine."""

BROKEN: dict[str, str] = {}
"""What is installed and yet does not work here: what of which case, and why."""


def if_here(peer: Peer) -> Callable[[Callable[[Any], None]], None]:
    """Call a function that registers a library with the cases, if that can be imported."""

    def run(register: Callable[[Any], None]) -> None:
        if peer.is_here:
            try:
                with warnings.catch_warnings(action="ignore"):
                    library = import_module(peer.module)
            except Exception as error:
                BROKEN[f"{peer.name} from all"] = f"it cannot be imported: {error!r}"
            else:
                register(library)

    return run


def is_row_of(peer: Peer, name: str) -> bool:
    """Whether a contender of this name is this library, maybe with a note."""
    return name == peer.name or name.startswith(f"{peer.name},")


def leave_out_the_unfit(options: Options) -> None:
    """Have each of them do each case once, and take those that fail out of it."""
    loop = "trio" if options.loop == "trio" else "asyncio"
    for case in CASES:
        if case.name.startswith(options.only):
            for one in list(case.contenders):
                if one.on in ("any", loop) and any(is_row_of(peer, one.name) for peer in PEERS):
                    _try(case, one, options)


def _try(case: Case, one: Contender, options: Options) -> None:
    async def once() -> None:
        with anyio.fail_after(PATIENCE):
            result = one.measure((options.quick and case.quick_size) or case.size or 1)
            if inspect.isawaitable(result):
                await result

    try:
        if options.loop == "trio":
            trio.run(once)
        elif options.loop == "uvloop":
            import uvloop

            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(once())
        else:
            asyncio.run(once())
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        case.contenders.remove(one)
        why = " ".join(repr(error).split())[:200]
        BROKEN[f"{one.name} from {case.name}"] = f"it fails: {why}"


def describe(loop: str) -> dict[str, str]:
    """What is said of the libraries: versions; which are left out of what, and why."""
    runs = "trio" if loop == "trio" else "asyncio"
    left_out: dict[str, str] = {}
    for what, why in BROKEN.items():  # the same reason is told once
        same = next((known for known, reason in left_out.items() if reason == why), None)
        if same is not None:
            del left_out[same]
            what = f"{same}, {what}"
        left_out[what] = why
    for peer in PEERS:
        if not peer.is_here or f"{peer.name} from all" in BROKEN:
            continue
        if peer.on not in ("any", runs):
            left_out[f"{peer.name} from all"] = f"it runs on {peer.on} only"
    versions = [
        f"{peer.name} {metadata.version(peer.name) if peer.is_here else 'not installed'}"
        for peer in PEERS
    ]
    reasons = "; ".join(f"{of_case}: {why}" for of_case, why in left_out.items())
    return {"peers": ", ".join(versions)} | ({"left out": reasons} if reasons else {})


TALKING = [*calls.values(), *many.values(), *tells.values(), gen_call, gen_call_many]
"""The cases in which there are peers."""
