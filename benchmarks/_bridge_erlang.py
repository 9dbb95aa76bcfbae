"""Two Erlang nodes: see ``erlang_nodes.escript``. Both are on loopback, and use no epmd."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
from _bridge_cases import (
    LINKED,
    calls,
    first_death,
    gen_call,
    gen_call_many,
    last_death,
    many,
    tells,
)
from _bridge_peers import free_port
from _erlang import Vm

vm = Vm(Path(__file__).with_name("erlang_nodes.escript"))


def start(cpu: int | None) -> str | None:
    """Start the near one, and return its version; None if there is no Erlang here."""
    port, cookie = str(free_port()), secrets.token_hex(16)
    flags = f"-name near{port}@127.0.0.1 -setcookie {cookie} -start_epmd false"
    flags += f" -erl_epmd_port {port} -dist_listen false"
    environment = {"BENCH_PORT": port, "BENCH_COOKIE": cookie, "ERL_FLAGS": flags}
    if shutil.which("erl") is None:
        return None
    return vm.start(cpu, [str(Path(__file__).with_name("backplane_far.erl"))], environment)


def death(which: int) -> Callable[[int], Awaitable[float]]:
    """How long after the kill the first (0) or the last (1) process heard of it."""

    async def measure(_: int) -> float:
        pid = vm.number("link", LINKED)
        await anyio.sleep(0.05)
        start = time.time_ns()
        os.kill(pid, signal.SIGKILL)
        return (vm.number("heard", which) - start) * 1e-9

    return measure


CALL = "Erlang gen_server:call"
for case in (calls["tcp"], gen_call):
    case.by(CALL, on="erlang")(vm.ask("call"))
for case in (many["tcp"], gen_call_many):
    case.by(CALL, on="erlang")(vm.ask("call_64"))
tells["tcp"].by("Erlang gen_server:cast", on="erlang")(vm.ask("cast"))
for number, case in enumerate((first_death, last_death)):
    case.by("Erlang, 1 000 pairs of processes", on="erlang")(death(number))
