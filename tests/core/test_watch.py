"""``watch``: a message or a function, whichever comes first."""

from __future__ import annotations

import asyncio
import itertools
import sys
import threading
import types
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
import anyio.lowlevel
import pytest
import trio

from backplane import (
    Completed,
    Device,
    DeviceDownError,
    Disconnected,
    Killed,
    Message,
    Messaged,
    Shutdown,
    Watched,
)

if TYPE_CHECKING:
    from conftest import Call

pytestmark = pytest.mark.anyio

T = TypeVar("T")
ENOUGH = 10  # turns of a loop, for whatever is going on to come to a rest

only_asyncio = pytest.mark.parametrize("anyio_backend", ["asyncio", "uvloop"], indirect=True)
only_trio = pytest.mark.parametrize("anyio_backend", ["trio"], indirect=True)
virtual = pytest.mark.parametrize(
    "anyio_backend", ["virtual asyncio", "virtual trio"], indirect=True
)


async def turns(count: int = ENOUGH) -> None:
    for _ in range(count):
        await anyio.lowlevel.checkpoint()


def heard(device: Device) -> list[Message]:
    """All that is in the mailbox, taken out."""
    messages = []
    while True:
        try:
            messages.append(device.receive_nowait())
        except anyio.WouldBlock:
            return messages


class Work:
    """Work that waits until it is released or cancelled, and keeps a diary."""

    def __init__(self) -> None:
        self.diary: list[str] = []
        self.released = anyio.Event()

    async def __call__(self, value: T) -> T:
        self.diary.append("begin")
        try:
            await self.released.wait()
        finally:
            with anyio.CancelScope(shield=True):
                await turns(3)
            self.diary.append("cleaned up")
        return value


class Disaster(BaseException):
    """An exception that is no ``Exception``."""


# -- what it returns ------------------------------------------------------------------


async def test_watch_returns_what_the_function_returns() -> None:
    device = Device()

    async def add(one: int, other: int) -> int:
        await anyio.lowlevel.checkpoint()
        return one + other

    assert await device.watch(add, 2, 3) == Completed(5)
    assert device.connected


async def test_watch_returns_a_value_that_took_no_time() -> None:
    async def give() -> str:
        return "value"

    assert await Device().watch(give) == Completed("value")


async def test_watch_takes_anything_that_returns_an_awaitable() -> None:
    device = Device()

    class Awaitable42:
        def __await__(self) -> Generator[Any, Any, int]:
            yield from anyio.lowlevel.checkpoint().__await__()
            return 42

    async def add(one: int, *, other: int) -> int:
        return one + other

    assert await device.watch(Awaitable42) == Completed(42)
    assert await device.watch(partial(add, 2, other=3)) == Completed(5)
    assert await device.watch(lambda: add(2, other=4)) == Completed(6)


async def test_watch_takes_a_function_made_of_a_generator() -> None:
    @types.coroutine
    def give() -> Generator[Any, Any, int]:
        yield from anyio.lowlevel.checkpoint().__await__()
        return 42

    assert await Device().watch(give) == Completed(42)


async def test_a_message_cancels_the_function_and_awaits_its_cleanup(
    call: type[Call[Watched[str]]],
) -> None:
    device, other, work = Device(), Device(), Work()
    device.link(other)

    async with anyio.create_task_group() as tg:
        tg.start_soon(watching := call(device.watch, work, "value"))
        await turns()
        assert work.diary == ["begin"]
        other.disconnect(Killed())
        assert not watching.over

    assert watching.value == Messaged(Disconnected(other.id, Killed()))
    assert work.diary == ["begin", "cleaned up"]
    assert heard(device) == []
    assert device.connected


@pytest.mark.parametrize("fault", [None, Killed()])
async def test_any_message_ends_a_watch(
    fault: Killed | None, call: type[Call[Watched[str]]]
) -> None:
    device, other = Device(), Device()
    device.link(other)

    async with anyio.create_task_group() as tg:
        tg.start_soon(watching := call(device.watch, anyio.sleep_forever))
        await turns()
        other.disconnect(fault)

    assert watching.value == Messaged(Disconnected(other.id, fault))


async def test_a_message_that_is_there_keeps_the_function_from_being_called() -> None:
    device, work = Device(), Work()
    device.line().shutdown()

    assert await device.watch(work, "value") == Messaged(Shutdown(None))

    assert work.diary == []


async def test_a_watch_takes_the_oldest_message_and_leaves_the_rest(
    call: type[Call[Watched[str]]],
) -> None:
    device, boss = Device(), Device()

    async with anyio.create_task_group() as tg:
        tg.start_soon(watching := call(device.watch, Work(), "value"))
        await turns()
        device.line().shutdown()
        device.line().shutdown(boss.id)

    assert watching.value == Messaged(Shutdown(None))
    assert heard(device) == [Shutdown(boss.id)]


async def test_a_message_goes_before_a_value_that_comes_in_the_same_turn(
    call: type[Call[Watched[str]]],
) -> None:
    device, work = Device(), Work()

    async with anyio.create_task_group() as tg:
        tg.start_soon(watching := call(device.watch, work, "value"))
        await turns()
        work.released.set()
        device.line().shutdown()

    assert watching.value == Messaged(Shutdown(None))
    assert heard(device) == []


async def test_a_message_sent_by_the_function_in_its_last_step_goes_before_its_value() -> None:
    device = Device()

    async def work() -> str:
        device.line().shutdown()
        return "value"

    assert await device.watch(work) == Messaged(Shutdown(None))
    await turns(1)  # meets a cancellation that the watch has left behind
    assert heard(device) == []


async def test_a_message_from_another_thread_in_the_last_step_goes_before_the_value() -> None:
    device = Device()

    async def work() -> str:
        thread = threading.Thread(target=device.line().shutdown)
        thread.start()
        thread.join()
        return "value"

    assert await device.watch(work) == Messaged(Shutdown(None))
    await turns()


async def test_a_function_that_swallows_its_cancellation_is_waited_for(
    call: type[Call[Watched[str]]],
) -> None:
    device, release = Device(), anyio.Event()
    cancellations = (asyncio.CancelledError, trio.Cancelled)

    async def stubborn() -> str:
        try:
            await anyio.sleep_forever()
        except cancellations:
            with anyio.CancelScope(shield=True):
                await release.wait()
        return "value"

    async with anyio.create_task_group() as tg:
        tg.start_soon(watching := call(device.watch, stubborn))
        await turns()
        device.line().shutdown()
        await turns()
        assert not watching.over
        release.set()

    assert watching.value == Messaged(Shutdown(None))


async def test_watches_can_follow_each_other() -> None:
    device = Device()

    async def give(value: int) -> int:
        await anyio.lowlevel.checkpoint()
        if value == 2:
            device.line().shutdown()
        return value

    assert [await device.watch(give, number) for number in range(4)] == [
        Completed(0),
        Completed(1),
        Messaged(Shutdown(None)),
        Completed(3),
    ]


# -- exceptions -----------------------------------------------------------------------


@pytest.mark.parametrize("error", [ValueError(), Disaster(), KeyboardInterrupt()], ids=repr)
async def test_an_exception_of_the_function_comes_out_as_it_is(error: BaseException) -> None:
    device = Device()

    async def work() -> None:
        await anyio.lowlevel.checkpoint()
        raise error

    with pytest.raises(type(error)) as caught:
        await device.watch(work)

    assert caught.value is error
    assert caught.value.__context__ is None
    assert device.connected


async def test_an_exception_out_of_the_cleanup_comes_out_and_the_message_stays(
    call: type[Call[Watched[None]]],
) -> None:
    device, error = Device(), OSError("cannot close")

    async def work() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise error

    async with anyio.create_task_group() as tg:
        tg.start_soon(watching := call(device.watch, work))
        await turns()
        device.line().shutdown()

    assert watching.error is error
    assert heard(device) == [Shutdown(None)]


@pytest.mark.parametrize("error", [ValueError(), Disaster()], ids=repr)
async def test_an_exception_in_the_step_that_sent_a_message_leaves_no_cancellation_behind(
    error: BaseException,
) -> None:
    device = Device()

    async def work() -> None:
        device.line().shutdown()
        raise error

    with pytest.raises(type(error)) as caught:
        await device.watch(work)

    assert caught.value is error
    await turns(1)
    assert heard(device) == [Shutdown(None)]


@only_trio
async def test_a_group_of_errors_comes_out_without_the_cancellations() -> None:
    device = Device()

    async def fail_in_cleanup() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise OSError("cannot close")

    async def work() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail_in_cleanup)
            nursery.start_soon(trio.sleep_forever)
            await turns()
            device.line().shutdown()

    with pytest.raises(ExceptionGroup) as caught:
        await device.watch(work)

    assert [str(error) for error in caught.value.exceptions] == ["cannot close"]
    assert heard(device) == [Shutdown(None)]


# -- cancellation ---------------------------------------------------------------------


async def test_cancelling_a_watch_cancels_the_function_and_awaits_its_cleanup(
    call: type[Call[Watched[str]]],
) -> None:
    device, work = Device(), Work()

    async with anyio.create_task_group() as tg:
        tg.start_soon(watching := call(device.watch, work, "value"))
        await turns()
        watching.cancel()

    assert watching.cancelled
    assert work.diary == ["begin", "cleaned up"]
    assert device.connected


@pytest.mark.parametrize("first", ["message", "cancellation"])
async def test_a_cancellation_goes_before_a_message_which_stays(
    first: str, call: type[Call[Watched[str]]]
) -> None:
    device = Device()

    async with anyio.create_task_group() as tg:
        tg.start_soon(watching := call(device.watch, anyio.sleep_forever))
        await turns()
        if first == "cancellation":
            watching.cancel()
        device.line().shutdown()
        if first == "message":
            watching.cancel()

    assert watching.cancelled
    assert heard(device) == [Shutdown(None)]


@only_asyncio
async def test_a_message_from_within_keeps_a_cancellation_from_outside(
    call: type[Call[Watched[None]]],
) -> None:
    device = Device()
    watching: Call[Watched[None]]

    async def work() -> None:
        device.line().shutdown()
        watching.cancel()

    async with anyio.create_task_group() as tg:
        watching = call(device.watch, work)
        tg.start_soon(watching)

    assert watching.cancelled
    assert heard(device) == [Shutdown(None)]


async def test_a_cancellation_during_the_cleanup_after_a_message_loses_nothing(
    call: type[Call[Watched[str]]],
) -> None:
    device, work = Device(), Work()

    async with anyio.create_task_group() as tg:
        tg.start_soon(watching := call(device.watch, work, "value"))
        await turns()
        device.line().shutdown()
        await turns(1)
        watching.cancel()

    assert work.diary[0] == "begin"
    got = [] if watching.cancelled else [watching.value]
    assert got == [] or got == [Messaged(Shutdown(None))]
    assert len(got) + len(heard(device)) == 1


async def test_a_watch_that_is_cancelled_before_it_begins_loses_nothing() -> None:
    device, work = Device(), Work()
    device.line().shutdown()

    with anyio.CancelScope() as scope:
        scope.cancel()
        await device.watch(work, "value")

    assert scope.cancelled_caught
    assert heard(device) == [Shutdown(None)]
    assert work.diary == []


@virtual
async def test_a_timeout_around_a_watch_ends_it() -> None:
    device, work = Device(), Work()

    with anyio.move_on_after(3600) as scope:
        await device.watch(work, "value")

    assert scope.cancelled_caught
    assert anyio.current_time() == pytest.approx(3600)
    assert work.diary == ["begin", "cleaned up"]


@virtual
async def test_a_timeout_inside_a_watch_is_the_functions_own_affair() -> None:
    device = Device()

    async def work() -> str:
        with anyio.move_on_after(60):
            await anyio.sleep_forever()
        return "late"

    assert await device.watch(work) == Completed("late")


@pytest.mark.parametrize("cleanup", [0, 2], ids=lambda cleanup: f"cleanup {cleanup}")
async def test_a_watch_that_is_cancelled_at_any_turn_loses_nothing(
    cleanup: int, call: type[Call[Watched[None]]]
) -> None:
    async def work() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await turns(cleanup)

    for sent, cancelled in itertools.product([None, *range(6)], range(8)):
        device = Device()

        async with anyio.create_task_group() as tg:
            tg.start_soon(watching := call(device.watch, work))
            for turn in range(8):
                if turn == sent:
                    device.line().shutdown()
                if turn == cancelled and not watching.over:
                    watching.cancel()
                await turns(1)
            await watching.wait()

        got = [] if watching.cancelled else [watching.value]
        left = [Messaged(message) for message in heard(device)]
        expected = [] if sent is None else [Messaged(Shutdown(None))]
        assert got + left == expected, (sent, cancelled)
        device.line().shutdown()
        assert await device.receive() == Shutdown(None)  # nobody holds the mailbox any longer


@only_asyncio
@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("message", [False, True])
async def test_a_watch_that_is_closed_at_any_wait_loses_nothing(steps: int, message: bool) -> None:
    device = Device()

    async def work() -> None:
        for _ in range(5):
            await asyncio.sleep(0)

    watching = device.watch(work)
    for _ in range(steps):
        watching.send(None)  # as a task does, from one wait to the next
    if message:
        device.line().shutdown()

    watching.close()

    if message and sys.version_info < (3, 13):
        with pytest.raises(asyncio.CancelledError):  # the message had cancelled this very task
            await asyncio.sleep(0)
    device.line().shutdown()
    assert await device.receive() == Shutdown(None)
    assert len(heard(device)) == message


# -- one at a time --------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["receive", "watch", "part_manage", "manage", "managed"])
async def test_nobody_else_gets_the_messages_of_a_device_that_watches(
    verb: str, call: type[Call[Watched[str]]]
) -> None:
    device, work, refused = Device("watcher"), Work(), Work()

    async def managed() -> None:
        async with device.managed():
            pytest.fail("entered")

    attempts: dict[str, Callable[[], Awaitable[object]]] = {
        "receive": device.receive,
        "watch": lambda: device.watch(refused, ""),
        "part_manage": lambda: device.part_manage(refused, ""),
        "manage": lambda: device.manage(refused, ""),
        "managed": managed,
    }
    async with anyio.create_task_group() as tg:
        tg.start_soon(watching := call(device.watch, work, "value"))
        await turns()
        with pytest.raises(anyio.BusyResourceError, match="'watcher'"):
            await attempts[verb]()
        assert device.connected
        work.released.set()

    assert watching.value == Completed("value")
    assert refused.diary == []


async def test_a_watch_needs_a_free_mailbox(call: type[Call[Message]]) -> None:
    device, work = Device(), Work()

    async with anyio.create_task_group() as tg:
        tg.start_soon(receiving := call(device.receive))
        await turns()
        with pytest.raises(anyio.BusyResourceError, match="cannot watch"):
            await device.watch(work, "value")
        device.line().shutdown()

    assert receiving.value == Shutdown(None)
    assert work.diary == []


async def test_a_watch_whose_message_is_taken_by_another_does_not_say_that_the_device_is_down(
    call: type[Call[Watched[None]]],
) -> None:
    device = Device()

    async with anyio.create_task_group() as tg:
        tg.start_soon(watching := call(device.watch, anyio.sleep_forever))
        await turns()
        device.line().shutdown()
        try:
            device.receive_nowait()
        except anyio.BusyResourceError:
            pass  # it may well be refused, as `receive` is
        await turns()
        if not watching.over:
            watching.cancel()

    assert device.connected
    assert not isinstance(watching.error, DeviceDownError)


# -- the end of the Device ------------------------------------------------------------


async def test_watching_after_the_end_is_an_error() -> None:
    device, work = Device(), Work()
    device.disconnect()

    with pytest.raises(DeviceDownError, match="cannot watch") as caught:
        await device.watch(work, "value")

    assert caught.value.device == device.id
    assert work.diary == []


async def test_a_function_under_watch_may_end_the_device() -> None:
    device = Device()

    async def work() -> str:
        device.disconnect()
        await anyio.lowlevel.checkpoint()
        return "value"

    assert await device.watch(work) == Completed("value")
    assert not device.connected


async def test_a_message_that_is_lost_with_the_device_is_a_device_down_error(
    call: type[Call[Watched[None]]],
) -> None:
    device = Device()

    async with anyio.create_task_group() as tg:
        tg.start_soon(watching := call(device.watch, anyio.sleep_forever))
        await turns()
        device.line().shutdown()
        device.disconnect()

    assert isinstance(watching.error, DeviceDownError)


# -- bad input ------------------------------------------------------------------------


async def test_a_coroutine_is_refused_and_not_left_unawaited() -> None:
    device, work = Device(), Work()

    with pytest.raises(TypeError, match=r"write watch\(fn, arg\), not watch\(fn\(arg\)\)"):
        await device.watch(work("value"))  # type: ignore[arg-type]

    assert work.diary == []
    assert device.connected


@pytest.mark.parametrize("thing", [None, "work", 5, Device()], ids=object.__repr__)
async def test_only_functions_can_be_watched(thing: Any) -> None:
    device = Device()

    with pytest.raises(TypeError, match=f"not a {type(thing).__qualname__}$"):
        await device.watch(thing)

    assert device.connected


@only_asyncio
async def test_a_future_is_refused() -> None:
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    with pytest.raises(TypeError, match="watch wants an async function, not a Future"):
        await Device().watch(future)  # type: ignore[arg-type]


async def test_a_function_that_is_not_async_is_refused() -> None:
    device = Device()

    def work() -> str:
        return "value"

    with pytest.raises(TypeError, match=r"work returned a str, which cannot be awaited"):
        await device.watch(work)  # type: ignore[arg-type]

    device.line().shutdown()
    assert await device.receive() == Shutdown(None)


async def test_a_generator_is_refused() -> None:
    async def work() -> AsyncIterator[int]:
        yield 1

    with pytest.raises(TypeError, match=r"work returned a async_generator"):
        await Device().watch(work)  # type: ignore[arg-type]


async def test_a_wrong_argument_is_the_functions_own_error() -> None:
    device = Device()

    with pytest.raises(TypeError, match="positional argument"):
        await device.watch(Work(), "too", "many")  # type: ignore[arg-type]

    device.line().shutdown()
    assert await device.receive() == Shutdown(None)
