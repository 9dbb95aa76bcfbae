"""Measure the core beside what a user would write instead; see README.md."""

from __future__ import annotations

import _core_many
import _core_one
import _core_seed
import _core_size
from _erlang import vm
from _harness import Aim, parse, run

CASES = [*_core_seed.CASES, *_core_one.CASES, *_core_many.CASES, *_core_size.CASES]

AIMS = [
    Aim("life, against Erlang spawn_monitor + DOWN", "life", "Erlang"),
    Aim("life, against asyncio create_task + await", "life", "asyncio create_task + await", 0.3),
    Aim("life, against a trio nursery of one task", "life", "trio nursery", 0.3),
    Aim("idle Device, bytes", "memory.device", None, 200),
    Aim("manage, against asyncio create_task + await", "manage", "asyncio create_task", 1.0),
    Aim("manage, against a trio nursery of one task", "manage", "trio nursery", 1.0),
    Aim("cascade of 10 000, against Erlang", "cascade", "Erlang", 10),
]


def main() -> None:
    options = parse("Measure the core of backplane beside the alternatives.", CASES)
    erlang = vm.start(options.cpu)
    try:
        run(CASES, AIMS, options, erlang)
    finally:
        vm.stop()


if __name__ == "__main__":
    main()
