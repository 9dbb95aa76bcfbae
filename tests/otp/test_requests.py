"""Requests that several wait for, or that are over before anybody looks."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from backplane.otp import (
    NO_REPLY,
    CallTimeoutError,
    From,
    GenServer,
    Requests,
    Scope,
    ServerRef,
    call,
    receive_response,
    send_request,
    start,
    stop,
    system,
    wait_response,
)

pytestmark = pytest.mark.anyio
virtual = pytest.mark.parametrize(
    "anyio_backend", ["virtual asyncio", "virtual trio"], indirect=True
)


class Echo(GenServer):
    """Answers what it is asked, unless that is "later"."""

    def handle_call(self, message: Any, from_: From) -> Any:
        return NO_REPLY if message == "later" else message


@virtual
async def test_a_request_that_is_over_can_still_be_put_into_a_collection() -> None:
    async with Scope():
        ref: ServerRef[Echo] = await start(Echo)
        request = send_request(ref, 1)
        await anyio.sleep(1)
        assert request.over
        requests = Requests()
        requests.add(request, "label")

        assert await requests.receive(timeout=0) == (1, "label")


@virtual
async def test_a_request_that_is_put_in_twice_is_received_once_with_its_last_label() -> None:
    async with Scope():
        ref: ServerRef[Echo] = await start(Echo)
        requests = Requests()
        for number in 1, 2:
            request = send_request(ref, number)
            requests.add(request, "first")
            requests.add(request, "last")

        assert len(requests) == 2
        assert await requests.receive() == (1, "last")
        assert await requests.receive() == (2, "last")
        with pytest.raises(LookupError):
            await requests.receive()


@virtual
async def test_one_task_that_gives_a_request_up_does_so_for_all() -> None:
    async with Scope(), anyio.create_task_group() as tg:
        ref: ServerRef[Echo] = await start(Echo)
        request = send_request(ref, "later")

        async def other() -> None:
            with pytest.raises(CallTimeoutError):
                await wait_response(request, 3)
            assert anyio.current_time() == 2
            assert not request.reply("too late")

        tg.start_soon(other)
        await anyio.sleep(1)
        with pytest.raises(CallTimeoutError):
            await receive_response(request, 1)
        assert anyio.current_time() == 2


@virtual
async def test_the_answer_to_a_query_that_was_given_up_meanwhile_goes_nowhere() -> None:
    class Thorough(Echo):
        async def format_status(self, status: dict[str, Any]) -> dict[str, Any]:
            await anyio.sleep(3)
            return status

    async with Scope():
        ref: ServerRef[Thorough] = await start(Thorough)
        with pytest.raises(CallTimeoutError):
            await system.get_status(ref, timeout=1)
        assert anyio.current_time() == 1

        assert await call(ref, "hi") == "hi"
        assert anyio.current_time() == 3
        assert (await system.get_status(ref)).suspended is False
        await stop(ref)
