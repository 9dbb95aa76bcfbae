"""A call that is made for another: how long it may take, and what follows when time is over."""

from __future__ import annotations

import math
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import anyio.to_thread
import pytest
from anyio.abc import TaskGroup

from backplane.otp import (
    CallTimeoutError,
    DeadlineError,
    From,
    GenServer,
    Scope,
    ServerDownError,
    ServerRef,
    call,
    cast,
    on_call,
    start,
)
from backplane.supervisor import Supervisor

pytestmark = pytest.mark.anyio
virtual = pytest.mark.parametrize(
    "anyio_backend", ["virtual asyncio", "virtual trio"], indirect=True
)
real = pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"], indirect=True)


class Database(GenServer):
    """Answers after a second."""

    @on_call
    async def load(self, key: int) -> int:
        await anyio.sleep(1)
        return key

    async def handle_call(self, message: int, from_: From) -> int:
        return await self.load(message)


Way = Callable[[ServerRef[Database], int], Awaitable[int]]


async def plainly(database: ServerRef[Database], key: int) -> int:
    found: int = await call(database, key)
    return found


async def by_method(database: ServerRef[Database], key: int) -> int:
    return await database.within(None).call(Database.load, key)


async def in_a_group(database: ServerRef[Database], key: int) -> int:
    found: list[int] = []

    async def load() -> None:
        found.append(await call(database, key, timeout=30))

    async with anyio.create_task_group() as tg:
        tg.start_soon(load)
    return found[0]


class Api(GenServer):
    """Asks the database for its own callers."""

    def init(self, database: ServerRef[Database], way: Way) -> None:
        self._database = database
        self._way = way

    @on_call
    async def get(self, key: int) -> int:
        return await self._way(self._database, key)

    async def handle_call(self, message: int, from_: From) -> int:
        return await self._way(self._database, message)


@virtual
@pytest.mark.parametrize("way", [plainly, by_method, in_a_group])
async def test_an_impatient_client_ends_nobody_and_the_others_get_their_answers(way: Way) -> None:
    answers: dict[int, Any] = {}

    async def client(api: ServerRef[Api], number: int, seconds: float) -> None:
        try:
            answers[number] = await call(api, number, timeout=seconds)
        except CallTimeoutError as error:
            answers[number] = type(error)

    async with Scope():
        database: ServerRef[Database] = await start(Database)
        api = await start(Api, database, way)
        async with anyio.create_task_group() as tg:
            tg.start_soon(client, api, 0, 0.02)
            await anyio.sleep(0.01)
            for number in 1, 2, 3:
                tg.start_soon(client, api, number, 10)

        assert api.pid.alive
        assert await api.within(5).call(Api.get, 4) == 4
    assert answers == {0: CallTimeoutError, 1: 1, 2: 2, 3: 3}


@virtual
async def test_its_error_says_whose_time_was_over() -> None:
    seen: list[DeadlineError] = []

    class Careful(Api):
        async def handle_call(self, message: int, from_: From) -> int:
            with pytest.raises(DeadlineError) as failure:
                await call(self._database, message)
            seen.append(failure.value)
            assert from_.over
            return 0

    async with Scope():
        database: ServerRef[Database] = await start(Database)
        api = await start(Careful, database, plainly)
        with pytest.raises(CallTimeoutError) as failure:
            await call(api, 1, timeout=0.02)
        await anyio.sleep(1)

    assert not isinstance(failure.value, DeadlineError)
    assert str(seen[0]) == (
        f"<Pid {database.pid.id.serial} Database (ended)> did not answer: "
        "the call that this was made for had only 0.02 s left"
    )
    assert seen[0].seconds == pytest.approx(0.02)


@virtual
async def test_one_that_has_no_time_left_does_not_even_ask() -> None:
    class Slow(Api):
        async def handle_call(self, message: int, from_: From) -> int:
            await anyio.sleep(2)
            return await plainly(self._database, message)

    async with Scope():
        api = await start(Slow, await start(Database), plainly)
        with pytest.raises(CallTimeoutError):
            await call(api, 1, timeout=1)
        await anyio.sleep(5)

        assert api.pid.alive
        assert await call(api, 1, timeout=30) == 1


@virtual
async def test_its_own_timeout_still_ends_a_server_that_does_not_catch_it() -> None:
    class Hasty(Api):
        async def handle_call(self, message: int, from_: From) -> Any:
            return await call(self._database, message, timeout=0.1)

    async with Scope():
        api = await start(Hasty, await start(Database), plainly)
        with pytest.raises(ServerDownError) as failure:
            await call(api, 1)

    assert type(failure.value.reason) is CallTimeoutError


@virtual
async def test_one_that_is_caught_and_raised_as_something_else_ends_the_server() -> None:
    class Bold(Api):
        async def handle_call(self, message: int, from_: From) -> Any:
            try:
                return await plainly(self._database, message)
            except DeadlineError as error:
                raise LookupError(message) from error

    async with Scope():
        api = await start(Bold, await start(Database), plainly)
        with pytest.raises(CallTimeoutError):
            await call(api, 1, timeout=0.5)

        assert repr(await api.wait()) == "LookupError(1)"


@virtual
async def test_one_of_a_call_long_answered_ends_a_server_like_any_error() -> None:
    class Late(Api):
        async def handle_call(self, message: int, from_: From) -> Any:
            return 1

        def handle_cast(self, message: Any) -> None:
            raise DeadlineError(self._database, message, 1.0)

    async with Scope():
        api = await start(Late, await start(Database), plainly)
        cast(api, 1)

        assert isinstance(await api.wait(), DeadlineError)


@virtual
async def test_one_of_another_call_ends_a_server_and_not_the_call_that_it_is_at() -> None:
    class Mixed(Api):
        """Waits in its second call for what it began in its first."""

        group: TaskGroup

        async def handle_call(self, message: int, from_: From) -> Any:
            if message == 1:
                self.error: BaseException | None = None
                self.over = anyio.Event()
                self.group.start_soon(self.load)
                await anyio.sleep(5)
            await self.over.wait()
            assert self.error is not None
            raise self.error

        async def load(self) -> None:
            try:
                await call(self._database, 1)
            except DeadlineError as error:
                self.error = error
            self.over.set()

    async with Scope(), anyio.create_task_group() as tg:
        Mixed.group = tg
        api = await start(Mixed, await start(Database), plainly)
        with pytest.raises(CallTimeoutError):
            await call(api, 1, timeout=0.5)
        with pytest.raises(ServerDownError) as failure:
            await call(api, 2, timeout=60)

    assert isinstance(failure.value.reason, DeadlineError)


@virtual
async def test_no_time_is_not_a_number() -> None:
    async with Scope():
        database: ServerRef[Database] = await start(Database)
        with pytest.raises(ValueError, match="not nan"):
            await call(database, 1, timeout=math.nan)

        assert await call(database, 1, timeout=math.inf) == 1


@virtual
async def test_what_a_server_does_at_its_end_has_the_time_it_takes() -> None:
    class Thorough(Api):
        async def handle_call(self, message: int, from_: From) -> Any:
            raise ValueError("no")

        async def terminate(self, reason: Any) -> None:
            assert self.time_left() is None
            said.append(await call(self._database, 7))

    said: list[int] = []
    async with Scope():
        api = await start(Thorough, await start(Database), plainly)
        with pytest.raises(CallTimeoutError):
            await call(api, 1, timeout=0.5)

        assert isinstance(await api.wait(), ValueError)
    assert said == [7]


@virtual
async def test_a_supervised_server_is_not_restarted_for_it() -> None:
    from backplane.otp import child_spec

    async with Scope():
        database: ServerRef[Database] = await start(Database)
        async with Supervisor([child_spec(Api, database, plainly)]) as supervisor:
            api = supervisor.which_child("Api").value
            for _ in range(10):
                with pytest.raises(CallTimeoutError):
                    await call(api, 1, timeout=0.02)
                await anyio.sleep(1)

            assert supervisor.which_child("Api").restarts == 0


@real
async def test_a_call_to_another_loop_is_cut_short_likewise(
    anyio_backend_name: str,
) -> None:
    ready, over = threading.Event(), threading.Event()
    refs: list[ServerRef[Database]] = []

    class Never(Database):
        async def handle_call(self, message: int, from_: From) -> int:
            await anyio.sleep_forever()
            return 0

    async def elsewhere() -> None:
        async with Scope(grace=0):
            refs.append(await start(Never))
            ready.set()
            await anyio.to_thread.run_sync(over.wait)

    thread = threading.Thread(target=lambda: anyio.run(elsewhere, backend=anyio_backend_name))
    thread.start()
    try:
        await anyio.to_thread.run_sync(ready.wait)
        async with Scope():
            api = await start(Api, refs[0], plainly)
            with pytest.raises(CallTimeoutError):
                await call(api, 1, timeout=0.05)
            with pytest.raises(CallTimeoutError):
                await call(api, 2, timeout=0.05)

            assert api.pid.alive
    finally:
        over.set()
        await anyio.to_thread.run_sync(thread.join)
