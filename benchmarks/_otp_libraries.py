"""The other libraries with servers or actors, where they are installed."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module, metadata
from typing import Any

from _harness import Case
from _otp_cases import (
    CASES,
    call,
    call_10,
    cast,
    memory,
    memory_process,
    ping_pong,
    ping_pong_100,
    ring,
    self_messages,
    spawn,
)
from _supervisor_libraries import CASTY, EVERYTHING, FAUXTP, LAPINBEAM, OTPYLIB, TRIOTP, Peer

AIOERL = Peer("aioerl", "aioerl", "asyncio")
PYKKA = Peer("pykka", "pykka", "any")
THESPIAN = Peer("thespian", "thespian", "any")
XOSCAR = Peer("xoscar", "xoscar", "asyncio")
PEERS = [TRIOTP, OTPYLIB, FAUXTP, LAPINBEAM, CASTY, EVERYTHING, AIOERL, PYKKA, THESPIAN, XOSCAR]

COMMON = [call, call_10, cast, ring, ping_pong, ping_pong_100]
"""What nearly all of them can do."""

LEFT_OUT: list[tuple[Case, list[Peer], str]] = [
    (
        memory_process,
        [TRIOTP, FAUXTP, LAPINBEAM, CASTY, EVERYTHING, PYKKA, THESPIAN, XOSCAR],
        "it has no processes that receive",
    ),
    (memory, [AIOERL], "it has no servers"),
    (memory, [LAPINBEAM], "each server is a class of its own, which would be weighed"),
    (memory, [CASTY, XOSCAR], "what it weighs is not Python's alone"),
    (memory, [PYKKA], "a thread for each: what their stacks weigh is not seen"),
    (memory, [THESPIAN], "an idle actor is no task, but a plain object"),
    (self_messages, [TRIOTP], "its mailboxes hold nothing: who sends to itself waits for ever"),
    (spawn, [LAPINBEAM], "each server is a class of its own"),
    (spawn, [CASTY], "its actors are never started, nor over by themselves"),
    (spawn, [XOSCAR], "its actors are not over by themselves"),
    (spawn, [THESPIAN], "an actor is no task: there is no end to wait for"),
    (call_10, [THESPIAN], "all happens within the call: there are no ten at once"),
]
"""Which case does without which of them, and why."""

BROKEN: dict[str, str] = {}
"""What is installed and yet does not work here: what of which case, and why."""


def if_here(
    peer: Peer, module: str | None = None
) -> Callable[[Callable[[Any], None]], Callable[[Any], None]]:
    """Call a function that registers a library with the cases, if that can be imported."""

    def run(register: Callable[[Any], None]) -> Callable[[Any], None]:
        if peer.is_here:
            try:
                library = import_module(module or peer.module)
            except Exception as error:
                BROKEN[f"{peer.name} from all"] = f"it cannot be imported: {error!r}"
            else:
                register(library)
        return register

    return run


def is_row_of(peer: Peer, name: str) -> bool:
    """Whether a contender of this name is this library, maybe with a note."""
    return name == peer.name or name.startswith(f"{peer.name},")


def describe(loop: str) -> dict[str, str]:
    """What is said of the libraries: versions; which are left out of what, and why."""
    runs = "trio" if loop == "trio" else "asyncio"
    left_out = dict(BROKEN)
    for peer in PEERS:
        if not peer.is_here or f"{peer.name} from all" in BROKEN:
            continue
        if peer.on not in ("any", runs):
            left_out[f"{peer.name} from all"] = f"it runs on {peer.on} only"
            continue
        for case in CASES:
            of_case = f"{peer.name} from {case.name}"
            if of_case not in BROKEN and not any(
                is_row_of(peer, one.name) for one in case.contenders
            ):
                left_out[of_case] = _why(case.name, peer)
    versions = [
        f"{peer.name} {metadata.version(peer.name) if peer.is_here else 'not installed'}"
        for peer in PEERS
    ]
    reasons = "; ".join(f"{of_case}: {why}" for of_case, why in left_out.items())
    return {"peers": ", ".join(versions)} | ({"left out": reasons} if reasons else {})


def _why(case: str, peer: Peer) -> str:
    for of, peers, why in LEFT_OUT:
        if of.name == case and peer in peers:
            return why
    raise AssertionError(f"nobody says why {peer.name} is left out of {case}")
