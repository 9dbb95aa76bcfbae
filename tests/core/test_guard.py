"""Guards: a block in which a function hears each message to a Device at once."""

from __future__ import annotations

import asyncio
import math
import threading
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from backplane import Device, DeviceDownError, Disconnected, Message, Shutdown
from backplane.lowlevel import Guard

pytestmark = pytest.mark.anyio


class Ear:
    """Hears everything, and stops at a request to shut down, or when it is told to."""

    def __init__(self) -> None:
        self.heard: list[Message | None] = []
        self.stops = False

    def __call__(self, message: Message | None) -> bool:
        self.heard.append(message)
        return self.stops or isinstance(message, Shutdown)


async def guarded(guard: Guard, fn: Any, *args: Any) -> BaseException | None:
    guard.enter()
    try:
        await fn(*args)
    except BaseException as exc:
        return await guard.leave(exc)
    return await guard.leave(None)


async def forever() -> None:
    await anyio.sleep(math.inf)


def quiet(*messages: Message) -> Device:
    device = Device()
    for message in messages:
        device.line().send(message)
    return device


OTHER = Device()
END = Disconnected(OTHER.id, None)
STOP = Shutdown(OTHER.id)


async def test_messages_are_heard_at_once_and_do_not_stop_the_work() -> None:
    device, ear = Device(), Ear()

    async def work() -> None:
        await checkpoint()
        device.line().send(END)
        assert ear.heard[0] is END

    assert await guarded(Guard(device, ear), work) is None
    assert device.connected
    assert [each for each in ear.heard if each] == [END]


async def test_what_came_before_is_heard_at_the_start() -> None:
    ear = Ear()
    device = quiet(END, END)
    guard = Guard(device, ear)

    assert guard.enter()
    assert ear.heard[:2] == [END, END]
    assert await guard.leave(None) is None


async def test_a_message_that_stops_the_work_before_it_begins_is_told_by_enter() -> None:
    ear = Ear()
    device = quiet(STOP, END)
    guard = Guard(device, ear)

    assert not guard.enter()
    assert await guard.leave(None) is None
    assert ear.heard == [STOP]
    assert device.receive_nowait() is END


async def test_the_work_is_cancelled_where_the_function_says_so_and_that_is_taken_out() -> None:
    device, ear = Device(), Ear()
    begun = anyio.Event()

    async def begin() -> None:
        begun.set()
        await forever()

    async with anyio.create_task_group() as tg:

        async def work() -> None:
            rests.append(await guarded(Guard(device, ear), begin))

        rests: list[BaseException | None] = []
        tg.start_soon(work)
        await begun.wait()
        device.line().send(STOP)
        device.line().send(END)

    assert rests == [None]
    assert ear.heard == [STOP]
    assert device.receive_nowait() is END
    assert device.connected


async def test_an_exception_of_the_work_is_what_is_left() -> None:
    error = ValueError()

    async def work() -> None:
        raise error

    device = Device()
    assert await guarded(Guard(device, Ear()), work) is error


async def test_a_cancellation_from_outside_is_left() -> None:
    device, ear = Device(), Ear()
    rests: list[BaseException | None] = []
    with anyio.CancelScope() as scope:

        async def work() -> None:
            scope.cancel()
            await forever()

        rest = await guarded(Guard(device, ear), work)
        rests.append(rest)
        assert isinstance(rest, anyio.get_cancelled_exc_class())
        raise rest
    assert len(rests) == 1


async def test_work_that_ends_in_the_step_in_which_it_is_stopped_meets_no_cancellation_later() -> (
    None
):
    device, ear = Device(), Ear()

    async def work() -> None:
        device.line().send(STOP)

    guard = Guard(device, ear)
    assert await guarded(guard, work) is None
    assert guard.stopped
    await checkpoint()


@pytest.mark.parametrize("anyio_backend", ["asyncio", "uvloop"], indirect=True)
async def test_a_stop_from_within_keeps_a_cancellation_from_outside() -> None:
    device, ear = Device(), Ear()

    async def work() -> None:
        device.line().send(STOP)
        task.cancel()

    task = asyncio.create_task(guarded(Guard(device, ear), work))
    rest = await task

    assert isinstance(rest, asyncio.CancelledError)
    assert ear.heard == [STOP]


@pytest.mark.parametrize("stops", [False, True])
async def test_a_poke_has_the_function_called_from_any_thread(stops: bool) -> None:
    device, ear = Device(), Ear()
    guard = Guard(device, ear)
    heard = anyio.Event()

    async def work() -> None:
        ear.stops = stops
        thread = threading.Thread(target=guard.poke)
        thread.start()
        thread.join()
        while not ear.heard:
            await checkpoint()
        if stops:
            await forever()
        heard.set()

    with anyio.fail_after(30):
        assert await guarded(guard, work) is None
    assert ear.heard == [None]
    assert guard.stopped is stops
    assert heard.is_set() is not stops


async def test_a_poke_before_or_after_the_work_does_nothing() -> None:
    device, ear = Device(), Ear()
    guard = Guard(device, ear)
    guard.poke()
    await guarded(guard, checkpoint)
    guard.poke()
    await checkpoint()

    assert ear.heard == []


async def test_a_poke_is_heard_by_work_that_is_stopping() -> None:
    device, ear = Device(), Ear()
    guard = Guard(device, ear)
    begun = anyio.Event()

    async def work() -> None:
        begun.set()
        try:
            await forever()
        finally:
            guard.poke()
            with anyio.CancelScope(shield=True):
                while len(ear.heard) < 2:
                    await anyio.sleep(0.001)

    async with anyio.create_task_group() as tg:
        tg.start_soon(guarded, guard, work)
        await begun.wait()
        device.line().send(STOP)

    assert ear.heard == [STOP, None]


async def test_a_device_has_one_guard_at_a_time() -> None:
    device = Device()
    guard = Guard(device, Ear())
    guard.enter()
    with pytest.raises(anyio.BusyResourceError):
        Guard(device, Ear()).enter()
    await guard.leave(None)
    device.disconnect()
    with pytest.raises(DeviceDownError):
        Guard(device, Ear()).enter()


async def test_a_message_from_another_thread_is_heard_as_the_work_ends() -> None:
    device, ear = Device(), Ear()

    async def work() -> None:
        thread = threading.Thread(target=device.line().send, args=(STOP,))
        thread.start()
        thread.join()

    guard = Guard(device, ear)
    assert await guarded(guard, work) is None
    assert ear.heard == [STOP]
    assert guard.stopped


@pytest.mark.parametrize("by", ["nobody", "the function", "somebody else"])
async def test_a_cancellation_that_was_asked_for_is_told_from_one_that_was_not(by: str) -> None:
    device, ear = Device(), Ear()
    guard = Guard(device, ear)
    told: list[bool] = []
    begun = anyio.Event()

    async def work() -> None:
        assert not guard.is_cancelled()
        begun.set()
        try:
            if by == "nobody":
                return
            await forever()
        finally:
            told.append(guard.is_cancelled())

    async with anyio.create_task_group() as tg:
        tg.start_soon(guarded, guard, work)
        await begun.wait()
        if by == "the function":
            device.line().send(STOP)
        elif by == "somebody else":
            tg.cancel_scope.cancel()

    assert told == [by != "nobody"]
