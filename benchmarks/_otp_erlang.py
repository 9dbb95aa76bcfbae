"""Erlang's gen_servers and processes: see ``erlang_peer.escript``."""

from __future__ import annotations

from _erlang import vm
from _otp_cases import (
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

call.by("Erlang gen_server:call", on="erlang")(vm.ask("call"))
call.by("Erlang gen_server:call, infinity", on="erlang")(vm.ask("call_infinity"))
call_10.by("Erlang gen_server:call", on="erlang")(vm.ask("call_10"))
cast.by("Erlang gen_server:cast", on="erlang")(vm.ask("cast"))
ring.by("Erlang gen_server:cast", on="erlang")(vm.ask("ring_cast"))
ring.by("Erlang, processes", on="erlang")(vm.ask("ring"))
spawn.by("Erlang, processes", on="erlang")(vm.ask("spawn_message"))
spawn.by("Erlang gen_server:start", on="erlang")(vm.ask("start_cast"))
memory.by("Erlang gen_server", on="erlang")(vm.ask("server_memory", scale=1))
memory_process.by("Erlang, processes", on="erlang")(vm.ask("told_memory", scale=1))
self_messages.by("Erlang gen_server:cast", on="erlang")(vm.ask("self_cast"))
self_messages.by("Erlang, processes", on="erlang")(vm.ask("self_messages"))
ping_pong.by("Erlang, processes", on="erlang")(vm.ask("ping_pong"))
ping_pong_100.by("Erlang, processes", on="erlang")(vm.ask("ping_pong_100"))
