"""Addresses: whatever takes a pid takes a name too, and looks it up at each use."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from backplane.otp import (
    KILLED,
    NOPROC,
    NORMAL,
    Down,
    Exited,
    GenServer,
    NoProcessError,
    Registry,
    Scope,
    Server,
    ServerDownError,
    ServerRef,
    Via,
    call,
    cast,
    cast_after,
    current_process,
    exit_after,
    kill_after,
    multi_call,
    receive_response,
    send,
    send_after,
    send_every,
    send_request,
    start,
    stop,
    system,
)

pytestmark = pytest.mark.anyio
virtual = pytest.mark.parametrize(
    "anyio_backend", ["virtual asyncio", "virtual trio"], indirect=True
)


class Named(GenServer):
    """Answers with its number, and keeps what it is told."""

    def init(self, number: int) -> None:
        self.number = number
        self.log: list[object] = []

    def handle_call(self, message: Any, from_: Any) -> Any:
        return self.log if message == "log" else (self.number, message)

    def handle_cast(self, message: Any) -> None:
        self.log.append(message)

    handle_info = handle_cast


class Elsewhere:
    """A directory of somebody's own make."""

    name = "elsewhere"

    def __init__(self, registry: Registry[Any, Any]) -> None:
        self.whereis = registry.whereis


ADDRESSES: dict[str, Callable[[Registry[Any, Any]], Server]] = {
    "name": lambda _: "it",
    "via": lambda registry: registry.via("it"),
    "own directory": lambda registry: Via(Elsewhere(registry), "it"),
    "handle of a name": lambda _: ServerRef("it", Named),
}
addresses = pytest.mark.parametrize("address", ADDRESSES)


@virtual
@addresses
async def test_a_server_is_used_by_whatever_address_and_replaced_under_it(address: str) -> None:
    with Registry[Any, Any]() as registry:
        async with Scope():
            it = ADDRESSES[address](registry)
            for number in 1, 2, 3:
                ref: ServerRef[Named] = await start(Named, number, name="it")

                assert await call(it, "hi") == (number, "hi")
                assert await receive_response(send_request(it, "hi")) == (number, "hi")
                assert await multi_call([it], "hi") == ([(it, (number, "hi"))], [])
                cast(it, "cast")
                assert send(it, "sent")
                assert (await system.get_state(it))["number"] == number
                assert await call(it, "log") == ["cast", "sent"]

                await stop(it)
                assert not ref.pid.alive


@virtual
@addresses
async def test_a_free_address_is_no_process(address: str) -> None:
    with Registry[Any, Any]() as registry:
        async with Scope():
            it = ADDRESSES[address](registry)

            asks: list[Callable[[], Any]] = [
                lambda: call(it, 1),
                lambda: stop(it),
                lambda: system.get_state(it),
                lambda: receive_response(send_request(it, 1)),
            ]
            for ask in asks:
                with pytest.raises(ServerDownError) as failure:
                    await ask()
                assert failure.value.reason is NOPROC
            with pytest.raises(NoProcessError):
                send(it, 1)
            cast(it, 1)
            assert await multi_call([it], 1) == ([], [it])


@virtual
@addresses
async def test_processes_link_with_and_monitor_an_address(address: str) -> None:
    async def main() -> None:
        me = current_process()
        ref: ServerRef[Named] = await start(Named, 1, name="it")
        one, other = me.monitor(it), me.monitor(it)
        me.link(it)
        assert me.links == [ref.pid]
        me.unlink(it)
        assert me.links == []
        me.link(it)
        assert me.demonitor(other)

        ref.pid.exit("boom")

        found = [await me.receive(), await me.receive()]
        assert found == [Exited(ref.pid, "boom"), Down(one, it, "boom")]
        for attempt in me.link, me.unlink:
            with pytest.raises(NoProcessError):
                attempt(it)
        ref_of_nobody = me.monitor(it)
        assert await me.receive() == Down(ref_of_nobody, it, NOPROC)

    with Registry[Any, Any]() as registry:
        it = ADDRESSES[address](registry)
        async with Scope() as scope:
            assert await scope.spawn(main, trap_exit=True).wait() is NORMAL


@virtual
@addresses
async def test_timers_find_whoever_has_the_address_when_they_are_due(address: str) -> None:
    async def main() -> None:
        early: ServerRef[Named] = await start(Named, 1, name="it")
        send_after(5, it, "sent")
        cast_after(6, it, "cast")
        send_every(4, it, "tick")
        await anyio.sleep(1)
        await stop(early)
        late: ServerRef[Named] = await start(Named, 2, name="it")
        await anyio.sleep(6)

        assert await call(it, "log") == ["tick", "sent", "cast"]
        exit_after(1, it, "enough")
        assert await late.wait() == "enough"
        last: ServerRef[Named] = await start(Named, 3, name="it")
        kill_after(1, it)
        assert await last.wait() is KILLED
        for fire in send_after, cast_after, exit_after:
            fire(1, it, "to nobody")
        await anyio.sleep(10)

    with Registry[Any, Any]() as registry:
        it = ADDRESSES[address](registry)
        async with Scope() as scope:
            assert await scope.spawn(main).wait() is NORMAL


@virtual
async def test_what_is_no_address_is_refused_and_nothing_is_done() -> None:
    async def main() -> None:
        me = current_process()
        for nonsense in None, 5, b"it", object():
            for attempt in me.link, me.unlink, me.monitor:
                with pytest.raises(TypeError, match="a process is a Pid, a Via or a name"):
                    attempt(nonsense)
        assert (me.links, me._monitors) == ([], None)

    async with Scope() as scope:
        assert await scope.spawn(main).wait() is NORMAL


@virtual
async def test_the_place_of_a_dead_server_is_found_free_until_the_next_has_it() -> None:
    with Registry[Any, Any]() as registry:
        async with Scope() as scope:
            it = registry.via("it")
            refs = [await start(Named, 1, name="it")]
            found: list[object] = []

            async def asker() -> None:
                while len(found) < 10:
                    try:
                        found.append(await call(it, "hi", timeout=math.inf))
                    except ServerDownError as error:
                        found.append(error.reason)
                    await anyio.sleep(1)

            pid = scope.spawn(asker)
            await anyio.sleep(2.5)
            refs[0].pid.exit("boom")
            await anyio.sleep(3)
            refs.append(await start(Named, 2, name="it"))

            assert await pid.wait() is NORMAL
    assert found == [(1, "hi")] * 3 + [NOPROC] * 3 + [(2, "hi")] * 4
