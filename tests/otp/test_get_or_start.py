"""Finding a server by its name, or starting it."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from backplane.otp import (
    Cast,
    From,
    GenServer,
    InitError,
    NoRegistryError,
    Registry,
    Scope,
    ServerDownError,
    ServerRef,
    StopRequest,
    call,
    cast,
    current_process,
    get_or_start,
    register,
    start,
    stop,
    whereis,
)

pytestmark = pytest.mark.anyio
virtual = pytest.mark.parametrize(
    "anyio_backend", ["virtual asyncio", "virtual trio"], indirect=True
)


class Session(GenServer):
    """Takes a second to start."""

    def init(self, made: list[object], error: Exception | None = None) -> Any:
        made.append(self)
        return self._begin(error)

    async def _begin(self, error: Exception | None) -> None:
        await anyio.sleep(1)
        if error is not None:
            raise error

    def handle_call(self, message: Any, from_: From) -> Any:
        return message


@virtual
async def test_of_many_that_ask_for_a_server_one_starts_it() -> None:
    made: list[object] = []
    found: list[ServerRef[Session]] = []

    async def ask() -> None:
        found.append(await get_or_start("ann", Session, made))
        assert await call(found[-1], "hi") == "hi"

    with Registry():
        async with Scope():
            async with anyio.create_task_group() as tg:
                for _ in range(10):
                    tg.start_soon(ask)

            assert {ref.pid for ref in found} == {whereis("ann")}
            assert await get_or_start("ann", Session, made) == found[0]
    assert len(made) == 1


@virtual
async def test_one_that_has_ended_is_started_anew() -> None:
    made: list[object] = []
    with Registry():
        async with Scope():
            for _ in range(3):
                await stop(await get_or_start("ann", Session, made, timeout=5))

    assert len(made) == 3


@virtual
async def test_a_start_that_fails_is_an_error_for_all_that_wait() -> None:
    made: list[object] = []
    errors: list[BaseException] = []

    async def ask() -> None:
        try:
            ref = await get_or_start("ann", Session, made, ValueError("no"))
            await call(ref, "hi")
        except (InitError, ServerDownError) as error:
            errors.append(error)

    with Registry():
        async with Scope(), anyio.create_task_group() as tg:
            for _ in range(3):
                tg.start_soon(ask)

    assert sorted(type(each).__name__ for each in errors) == [
        "InitError",
        "ServerDownError",
        "ServerDownError",
    ]


@virtual
async def test_a_name_that_is_taken_by_something_else_within_init_is_an_error() -> None:
    class Greedy(GenServer):
        def init(self) -> None:
            register("other")

    with Registry():
        async with Scope():
            with pytest.raises(InitError, match="has the name 'ann' already"):
                await get_or_start("ann", Greedy)

            assert whereis("ann") is None


@virtual
async def test_a_name_wants_a_registry() -> None:
    async with Scope():
        with pytest.raises(NoRegistryError):
            await get_or_start("ann", Session, [])


@virtual
async def test_a_process_that_is_no_server_sees_what_servers_are_sent() -> None:
    seen: list[Any] = []

    async def plain() -> None:
        me = current_process()
        asked = await me.receive(From)
        assert asked.reply(asked.message.upper())
        seen.append((await me.receive(Cast)).message)
        request = await me.receive(StopRequest)
        seen.append(request.reason)

    async with Scope() as scope:
        pid = scope.spawn(plain)
        assert await call(pid, "hi") == "HI"
        cast(pid, "there")
        await stop(pid)

    assert [str(each) for each in seen] == ["there", "normal"]


@virtual
async def test_it_starts_with_the_options_of_a_start() -> None:
    with Registry():
        async with Scope():
            with pytest.raises(InitError, match="init took more than"):
                await get_or_start("ann", Session, [], timeout=0.5)

            ref: ServerRef[Session] = await start(Session, [], name="ann")
            assert await get_or_start("ann", Session, [], timeout=0.5) == ref
