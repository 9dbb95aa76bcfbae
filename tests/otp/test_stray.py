"""A cancellation that nobody asked for is a fault; one from outside is not."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import trio

from backplane.otp import (
    Down,
    From,
    GenServer,
    Scope,
    ServerDownError,
    ServerRef,
    Stopped,
    StrayError,
    call,
    child_spec,
    current_process,
    receive_response,
    send_request,
    spawn_monitor,
    start,
)
from backplane.supervisor import ChildExited, Restart, Supervisor

pytestmark = pytest.mark.anyio
every_asyncio = pytest.mark.parametrize("anyio_backend", ["asyncio", "uvloop"], indirect=True)
both = pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"], indirect=True)


async def wait_for_what_is_cancelled() -> None:
    task = asyncio.ensure_future(asyncio.sleep(60))
    await asyncio.sleep(0)
    task.cancel()
    await task


class Waiting(GenServer):
    def init(self, ended: list[Any]) -> None:
        self._ended = ended

    async def handle_call(self, message: Any, from_: From) -> Any:
        await message()

    def terminate(self, reason: Any) -> None:
        self._ended.append(reason)


async def raise_generator_exit() -> None:
    raise GeneratorExit


class Foreign(BaseException):
    """As those that test frameworks raise."""


async def raise_foreign() -> None:
    raise Foreign


async def raise_a_cancellation_of_before() -> None:
    kept: list[BaseException] = []
    with anyio.CancelScope() as scope:
        scope.cancel()
        try:
            await anyio.sleep(1)
        except BaseException as caught:
            kept.append(caught)
            raise
    raise kept[0]


@every_asyncio
async def test_what_a_server_waits_for_is_cancelled_and_it_ends_as_for_an_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    ended: list[Any] = []
    async with Scope():
        ref: ServerRef[Waiting] = await start(Waiting, ended)
        with pytest.raises(ServerDownError) as failure:
            await call(ref, wait_for_what_is_cancelled)

    reason = failure.value.reason
    assert isinstance(reason, StrayError)
    assert isinstance(reason.exception, asyncio.CancelledError)
    assert reason.__cause__ is reason.exception
    assert str(reason) == "CancelledError() came out of code that nobody had cancelled"
    assert ended == [reason]
    (report,) = [each for each in caplog.records if each.levelno == logging.ERROR]
    assert "wait_for_what_is_cancelled" in caplog.text
    assert report.exc_info is not None


@both
@pytest.mark.parametrize(
    "code", [raise_generator_exit, raise_foreign, raise_a_cancellation_of_before]
)
async def test_so_it_is_with_whatever_is_no_error_and_with_plain_processes(code: Any) -> None:
    async def watcher() -> None:
        spawn_monitor(code)
        reasons.append((await current_process().receive(Down)).reason)

    reasons: list[Any] = []
    async with Scope() as scope:
        ref: ServerRef[Waiting] = await start(Waiting, [])
        with pytest.raises(ServerDownError) as failure:
            await call(ref, code)
        reasons.append(failure.value.reason)
        await scope.spawn(watcher).wait()

    assert [type(each) for each in reasons] == [StrayError, StrayError]


@every_asyncio
async def test_its_supervisor_says_the_same(caplog: pytest.LogCaptureFixture) -> None:
    events: list[Any] = []
    spec = child_spec(Waiting, [], restart=Restart.TRANSIENT)
    async with Supervisor([spec], subscribers=[events.append]) as supervisor:
        ref = supervisor.which_child("Waiting").value
        with pytest.raises(ServerDownError) as failure:
            await call(ref, wait_for_what_is_cancelled)
        while supervisor.which_child("Waiting").restarts == 0:
            await anyio.sleep(0.01)

    exited = next(event for event in events if isinstance(event, ChildExited))
    assert exited.fault.exception is failure.value.reason  # type: ignore[union-attr]


@every_asyncio
async def test_a_process_whose_task_somebody_cancels_was_cancelled() -> None:
    tasks: list[asyncio.Task[Any] | None] = []

    async def code() -> None:
        tasks.append(asyncio.current_task())
        await anyio.sleep(60)

    async with Scope() as scope:
        pid = scope.spawn(code)
        ref: ServerRef[Waiting] = await start(Waiting, [])
        request = send_request(ref, code)
        while len(tasks) < 2:
            await anyio.lowlevel.checkpoint()
        for task in tasks:
            assert task is not None
            task.cancel()
        with pytest.raises(ServerDownError) as failure:
            await receive_response(request)

        assert await pid.wait() == Stopped("cancelled")
        assert failure.value.reason == Stopped("cancelled")


@pytest.mark.parametrize("anyio_backend", ["trio"], indirect=True)
async def test_a_process_within_a_scope_that_is_cancelled_was_cancelled() -> None:
    from backplane import Device
    from backplane.otp import Process

    process = Process(Device())
    with trio.CancelScope() as scope:
        scope.cancel()
        await process.run(trio.sleep, 1)

    assert process.reason == Stopped("cancelled")
