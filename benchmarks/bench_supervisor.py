"""Measure supervisors beside the alternatives; see README.md."""

from __future__ import annotations

import logging

import _supervisor_actors  # noqa: F401 - it registers what is installed
import _supervisor_many
import _supervisor_peers  # noqa: F401 - as above
import _supervisor_restart
from _erlang import vm
from _harness import Aim, parse, run
from _supervisor_libraries import PEERS, SAME_TASK, describe

CASES = [*_supervisor_restart.CASES, *_supervisor_many.CASES]

AIMS = [
    Aim("restart, against a task for each run", "restart", "asyncio by hand, a task", 1.0),
    Aim("restart, against a nursery for each run", "restart", "trio by hand, a nursery", 1.0),
    Aim("restart, against Erlang", "restart", "Erlang"),
    *(
        Aim(f"restart, against {peer.name}", "restart", peer.name, None if peer in SAME_TASK else 1)
        for peer in PEERS
    ),
    Aim("restart, 20 000 in the window or none", "restart.big_window", "backplane, nothing", 1.15),
    Aim("one_for_all of ten, against Erlang", "one_for_all.10", "Erlang"),
    Aim("start of 10 000, against bare tasks", "start.10000", "asyncio tasks", 2.0),
    Aim("start of 10 000, against a nursery", "start.10000", "trio nursery", 2.0),
    Aim("supervised idle child, bytes above a bare task", "memory", None, 2000),
]


def main() -> None:
    options = parse("Measure supervisors of backplane beside the alternatives.", CASES)
    logging.disable()  # each crash is logged by all, and what a handler costs is not theirs
    erlang = vm.start(options.cpu)
    try:
        run(CASES, AIMS, options, erlang, {"peers": describe()})
    finally:
        vm.stop()


if __name__ == "__main__":
    main()
