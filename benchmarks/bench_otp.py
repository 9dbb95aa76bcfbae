"""Measure servers and processes beside the alternatives; see README.md."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import _otp_all  # noqa: F401 - it registers all contenders
from _erlang import vm
from _harness import Aim, parse, run
from _otp_cases import CASES
from _otp_libraries import PEERS, describe, is_row_of
from _otp_try import leave_out_the_unfit

BY_HAND = "asyncio Queue + Future"
ON_TRIO = "trio memory channels"


def against_peers() -> Iterator[Aim]:
    for case in CASES:
        for one in case.contenders:
            if any(is_row_of(peer, one.name) for peer in PEERS):
                yield Aim(f"{case.name}, against {one.name}", case.name, one.name, 1.0)


def aims() -> list[Aim]:
    return [
        Aim("a call, against a Queue and a Future", "call", BY_HAND, 1.0),
        Aim("calls of ten clients, against the same", "call.10", BY_HAND, 1.0),
        Aim("a cast, against the same", "cast", BY_HAND, 0.4),
        Aim("a call, against memory channels", "call", ON_TRIO, 1.0),
        Aim("calls of ten clients, against the same", "call.10", ON_TRIO, 1.0),
        Aim("a cast, against the same", "cast", ON_TRIO, 0.4),
        Aim("bytes of an idle server", "memory.server", None, 2650),
        *against_peers(),
        *(Aim(f"{case.name}, against Erlang", case.name, "Erlang") for case in CASES),
    ]


def main() -> None:
    options = parse("Measure servers and processes of backplane beside the alternatives.", CASES)
    logging.disable()  # some tell of each message
    leave_out_the_unfit(options)
    erlang = vm.start(options.cpu)
    try:
        run(CASES, aims(), options, erlang, describe(options.loop))
    finally:
        vm.stop()


if __name__ == "__main__":
    main()
