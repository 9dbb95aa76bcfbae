"""The work of ``bench_bridge.py``, which imports this only where it is the main program."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import _bridge_all  # noqa: F401 - it registers all contenders
from _bridge_cases import CASES, calls, fars, gen_call, last_death, tells
from _bridge_erlang import start, vm
from _bridge_libraries import PEERS, TALKING, describe, is_row_of, leave_out_the_unfit
from _harness import Aim, parse, run


def against_peers() -> Iterator[Aim]:
    for case in TALKING:
        for one in case.contenders:
            if any(is_row_of(peer, one.name) for peer in PEERS):
                yield Aim(f"{case.name}, against {one.name}", case.name, one.name, 1.0)


def aims() -> list[Aim]:
    return [
        Aim("a message, TCP", tells["tcp"].name, None, 5e-6, "s"),
        Aim("a message, Unix socket", tells["unix"].name, None, 5e-6, "s"),
        Aim("the last Device has heard of a death", last_death.name, None, 0.010, "s"),
        Aim("a call, against Erlang", calls["tcp"].name, "Erlang", 2.0),
        Aim("a call of a server, against Erlang", gen_call.name, "Erlang", 2.0),
        *(Aim(f"{case.name}, against Erlang", case.name, "Erlang") for case in CASES),
        *against_peers(),
    ]


def main() -> None:
    options = parse(
        "Measure nodes and clusters of backplane beside the alternatives.", CASES, cpu="all"
    )
    logging.disable()  # some tell of each connection
    fars.loop = options.loop
    try:
        leave_out_the_unfit(options)
        erlang = start(options.cpu)
        try:
            run(CASES, aims(), options, erlang, describe(options.loop))
        finally:
            vm.stop()
    finally:
        fars.stop()
