"""``manage``, ``part_manage`` and ``managed``: work that ends with its Device."""

from __future__ import annotations

import asyncio
import gc
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
    Cancelled,
    CascadeCrash,
    Cascaded,
    Crash,
    Device,
    DeviceDownError,
    Disconnected,
    Dropped,
    Failed,
    Fault,
    Killed,
    LinkMode,
    Message,
    PowerOffCrash,
    Shutdown,
    current_device,
)

if TYPE_CHECKING:
    from conftest import Call

pytestmark = pytest.mark.anyio

T = TypeVar("T")
Fn = Callable[[], Awaitable[Any]]
Way = Callable[[Device, Fn], Awaitable[Any]]

MONITOR, PEER = LinkMode.MONITOR, LinkMode.PEER
ENOUGH = 10  # turns of a loop, for whatever is going on to come to a rest


async def manage(device: Device, fn: Fn) -> Any:
    return await device.manage(fn)


async def part_manage(device: Device, fn: Fn) -> Any:
    return await device.part_manage(fn)


async def managed(device: Device, fn: Fn) -> Any:
    async with device.managed():
        return await fn()


WAYS: list[Way] = [manage, part_manage, managed]

way = pytest.mark.parametrize("way", WAYS)
ending_way = pytest.mark.parametrize("way", [manage, managed])
only_asyncio = pytest.mark.parametrize("anyio_backend", ["asyncio", "uvloop"], indirect=True)
only_trio = pytest.mark.parametrize("anyio_backend", ["trio"], indirect=True)


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


class Disaster(BaseException):
    """An exception that is no ``Exception``."""


class Scene:
    """A Device that works, what it depends on, and who hears of its end.

    The work waits until it is released or cancelled. Its cleanup takes some
    turns, and nobody may hear of the end before it is over.
    """

    def __init__(self) -> None:
        self.device = Device("worker")
        self.other = Device("other")
        self.device.link(self.other, MONITOR)
        self.listener = Device("listener")
        self.listener.link(self.device, MONITOR)
        self.diary: list[str] = []
        self.released = anyio.Event()
        self.error_in_cleanup: BaseException | None = None

    async def work(self) -> str:
        self.diary.append("begin")
        assert current_device() is self.device
        try:
            await self.released.wait()
        finally:
            with anyio.CancelScope(shield=True):
                await turns(3)
            assert self.heard() == []
            self.diary.append("cleaned up")
            if self.error_in_cleanup is not None:
                raise self.error_in_cleanup
        return "value"

    def heard(self) -> list[Fault | None]:
        """The faults with which the Device has been heard to end."""
        faults = []
        for message in heard(self.listener):
            assert isinstance(message, Disconnected)
            assert message.sender == self.device.id
            faults.append(message.fault)
        return faults

    def cascaded(self, fault: Fault) -> Cascaded:
        return Cascaded(self.other.id, fault)


@pytest.fixture
def scene() -> Scene:
    return Scene()


# -- the work ends by itself ----------------------------------------------------------


@way
async def test_the_caller_gets_the_value_of_the_work(way: Way, scene: Scene) -> None:
    scene.released.set()

    assert await way(scene.device, scene.work) == "value"

    assert scene.diary == ["begin", "cleaned up"]


@ending_way
async def test_a_device_ends_well_with_its_work(way: Way, scene: Scene) -> None:
    scene.released.set()

    await way(scene.device, scene.work)

    assert scene.heard() == [None]
    assert not scene.device.connected


async def test_a_device_outlives_work_that_is_managed_in_part(scene: Scene) -> None:
    scene.released.set()

    for _ in range(3):
        assert await scene.device.part_manage(scene.work) == "value"

    assert scene.device.connected
    assert scene.heard() == []


@way
async def test_work_may_take_no_time(way: Way, scene: Scene) -> None:
    async def work() -> int:
        return 42

    assert await way(scene.device, work) == 42


async def test_arguments_are_handed_on(scene: Scene) -> None:
    async def add(one: int, other: int) -> int:
        return one + other

    assert await scene.device.part_manage(add, 2, 3) == 5
    assert await scene.device.manage(add, 3, 4) == 7


async def test_work_may_be_anything_that_returns_an_awaitable(scene: Scene) -> None:
    class Awaitable42:
        def __await__(self) -> Generator[Any, Any, int]:
            yield from anyio.lowlevel.checkpoint().__await__()
            return 42

    async def add(one: int, *, other: int) -> int:
        return one + other

    assert await scene.device.part_manage(Awaitable42) == 42
    assert await scene.device.part_manage(partial(add, 2, other=3)) == 5
    assert await scene.device.part_manage(lambda: add(2, other=4)) == 6


async def test_work_may_be_a_coroutine_made_of_a_generator(scene: Scene) -> None:
    @types.coroutine
    def work() -> Generator[Any, Any, int]:
        yield from anyio.lowlevel.checkpoint().__await__()
        return 42

    assert await scene.device.manage(work) == 42


ERRORS = [ValueError("boom"), ExceptionGroup("two", [OSError(), KeyError()]), Disaster()]
errors = pytest.mark.parametrize(
    "error", [*ERRORS, KeyboardInterrupt(), SystemExit(), StopAsyncIteration()], ids=repr
)


@way
@errors
async def test_an_exception_of_the_work_comes_out_as_it_is_and_is_the_fault(
    way: Way, error: BaseException, scene: Scene
) -> None:
    async def work() -> None:
        await anyio.lowlevel.checkpoint()
        raise error

    with pytest.raises(type(error)) as caught:
        await way(scene.device, work)

    assert caught.value is error
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    assert scene.heard() == [Failed(error)]


@way
async def test_an_exception_is_heard_of_only_after_the_cleanup(way: Way, scene: Scene) -> None:
    scene.error_in_cleanup = OSError("cannot close")
    scene.released.set()

    with pytest.raises(OSError, match="cannot close"):
        await way(scene.device, scene.work)

    assert scene.diary == ["begin", "cleaned up"]
    assert scene.heard() == [Failed(scene.error_in_cleanup)]


# -- a message stops the work ---------------------------------------------------------

FAULTS: list[Fault] = [Killed(), Dropped(), Failed(ERRORS[0])]
faults = pytest.mark.parametrize("fault", FAULTS, ids=repr)


@way
@faults
async def test_the_fault_of_another_stops_the_work(
    way: Way, fault: Fault, scene: Scene, call: type[Call[str]]
) -> None:
    async with anyio.create_task_group() as tg:
        tg.start_soon(working := call(way, scene.device, scene.work))
        await turns()
        assert scene.diary == ["begin"]
        scene.other.disconnect(fault)
        assert not working.over

    assert scene.diary == ["begin", "cleaned up"]
    assert type(working.error) is CascadeCrash
    assert (working.error.sender, working.error.fault) == (scene.other.id, fault)
    assert scene.heard() == [scene.cascaded(fault)]


@way
async def test_a_crash_has_no_context_but_what_happened_in_the_cleanup(
    way: Way, scene: Scene, call: type[Call[str]]
) -> None:
    async with anyio.create_task_group() as tg:
        tg.start_soon(working := call(way, scene.device, scene.work))
        await turns()
        scene.other.disconnect(Killed())

    assert isinstance(working.error, CascadeCrash)
    assert working.error.__cause__ is None
    assert working.error.__context__ is None or working.error.__suppress_context__


@way
async def test_a_cascade_names_who_was_near_and_where_it_began(
    way: Way, scene: Scene, call: type[Call[str]]
) -> None:
    origin = Device()
    fault = Cascaded(origin.id, Killed())

    async with anyio.create_task_group() as tg:
        tg.start_soon(working := call(way, scene.device, scene.work))
        await turns()
        scene.other.disconnect(fault)

    assert isinstance(working.error, CascadeCrash)
    assert working.error.fault is fault
    assert working.error.root == Killed()
    assert scene.heard() == [Cascaded(scene.other.id, fault)]


@way
async def test_work_goes_on_when_another_ends_well(
    way: Way, scene: Scene, call: type[Call[str]]
) -> None:
    async with anyio.create_task_group() as tg:
        tg.start_soon(working := call(way, scene.device, scene.work))
        await turns()
        scene.other.disconnect()
        await turns()
        assert scene.diary == ["begin"]
        scene.released.set()

    assert working.value == "value"
    assert scene.heard() == ([] if way is part_manage else [None])


async def test_news_of_good_ends_are_taken_out_meanwhile(scene: Scene) -> None:
    async def work() -> None:
        scene.other.disconnect()

    await scene.device.part_manage(work)

    assert heard(scene.device) == []


@way
async def test_work_goes_on_when_a_device_that_it_does_not_hear_fails(
    way: Way, scene: Scene, call: type[Call[str]]
) -> None:
    stranger = Device()
    stranger.link(scene.device, MONITOR)

    async with anyio.create_task_group() as tg:
        tg.start_soon(working := call(way, scene.device, scene.work))
        await turns()
        stranger.disconnect(Killed())
        await turns()
        scene.released.set()

    assert working.value == "value"


@way
@pytest.mark.parametrize("asked_by", ["nobody", "a Device"])
async def test_a_request_to_shut_down_stops_the_work_and_is_no_fault(
    way: Way, asked_by: str, scene: Scene, call: type[Call[str]]
) -> None:
    sender = None if asked_by == "nobody" else scene.listener.id

    async with anyio.create_task_group() as tg:
        tg.start_soon(working := call(way, scene.device, scene.work))
        await turns()
        assert scene.device.line().shutdown(sender)
        assert not working.over

    assert scene.diary == ["begin", "cleaned up"]
    assert type(working.error) is PowerOffCrash
    assert working.error.sender == sender
    assert scene.heard() == [None]


@way
async def test_the_first_message_that_stops_the_work_is_the_cause(
    way: Way, scene: Scene, call: type[Call[str]]
) -> None:
    harmless = Device()
    scene.device.link(harmless, MONITOR)

    async with anyio.create_task_group() as tg:
        tg.start_soon(working := call(way, scene.device, scene.work))
        await turns()
        harmless.disconnect()
        scene.other.disconnect(Killed())
        scene.device.line().shutdown()
        await turns(1)
        scene.device.line().shutdown()

    assert isinstance(working.error, CascadeCrash)
    assert scene.heard() == [scene.cascaded(Killed())]


@way
@faults
async def test_a_fault_that_is_known_already_keeps_the_work_from_beginning(
    way: Way, fault: Fault, scene: Scene
) -> None:
    scene.other.disconnect(fault)

    with pytest.raises(CascadeCrash) as caught:
        await way(scene.device, scene.work)

    assert caught.value.fault == fault
    assert scene.diary == []
    assert scene.heard() == [scene.cascaded(fault)]


@way
async def test_a_request_that_was_made_already_keeps_the_work_from_beginning(
    way: Way, scene: Scene
) -> None:
    scene.device.line().shutdown()

    with pytest.raises(PowerOffCrash):
        await way(scene.device, scene.work)

    assert scene.diary == []
    assert scene.heard() == [None]


@way
async def test_good_ends_that_are_known_already_do_not_matter(way: Way, scene: Scene) -> None:
    scene.other.disconnect()
    scene.released.set()

    assert await way(scene.device, scene.work) == "value"


@way
async def test_a_message_goes_before_a_value_of_the_same_turn(
    way: Way, scene: Scene, call: type[Call[str]]
) -> None:
    async with anyio.create_task_group() as tg:
        tg.start_soon(working := call(way, scene.device, scene.work))
        await turns()
        scene.released.set()
        scene.other.disconnect(Killed())

    assert isinstance(working.error, CascadeCrash)
    assert scene.heard() == [scene.cascaded(Killed())]


@way
async def test_what_the_work_is_given_in_the_turn_of_a_message_is_not_lost(
    way: Way, scene: Scene, call: type[Call[None]]
) -> None:
    """An item from a queue, say: the work is told to stop where it awaits next."""
    given: list[str] = []

    async def work() -> None:
        await scene.released.wait()
        given.append("item")
        await anyio.sleep_forever()

    async with anyio.create_task_group() as tg:
        tg.start_soon(working := call(way, scene.device, work))
        await turns()
        scene.released.set()
        scene.other.disconnect(Killed())

    assert isinstance(working.error, CascadeCrash)
    assert given == ["item"]


@way
async def test_work_that_ends_with_what_it_is_given_in_the_turn_of_a_message_is_stopped(
    way: Way, scene: Scene, call: type[Call[None]]
) -> None:
    async def work() -> None:
        await scene.released.wait()

    async with anyio.create_task_group() as tg:
        tg.start_soon(working := call(way, scene.device, work))
        await turns()
        scene.released.set()
        scene.other.disconnect(Killed())

    assert isinstance(working.error, CascadeCrash)
    assert scene.heard() == [scene.cascaded(Killed())]
    await turns()  # meets a cancellation that was left behind


@way
async def test_a_message_from_another_thread_in_the_last_step_goes_before_the_value(
    way: Way, scene: Scene
) -> None:
    async def work() -> str:
        thread = threading.Thread(target=scene.other.disconnect, args=[Killed()])
        thread.start()
        thread.join()
        return "value"

    with pytest.raises(CascadeCrash):
        await way(scene.device, work)

    await turns()
    assert scene.heard() == [scene.cascaded(Killed())]


@way
async def test_work_that_swallows_its_cancellation_is_waited_for(
    way: Way, scene: Scene, call: type[Call[str]]
) -> None:
    cancellations = (asyncio.CancelledError, trio.Cancelled)

    async def stubborn() -> str:
        try:
            await anyio.sleep_forever()
        except cancellations:
            with anyio.CancelScope(shield=True):
                await scene.released.wait()
        return "value"

    async with anyio.create_task_group() as tg:
        tg.start_soon(working := call(way, scene.device, stubborn))
        await turns()
        scene.other.disconnect(Killed())
        await turns()
        assert not working.over
        assert scene.heard() == []
        scene.released.set()

    assert isinstance(working.error, CascadeCrash)
    assert scene.heard() == [scene.cascaded(Killed())]


@way
async def test_an_exception_of_the_cleanup_is_the_context_of_the_crash(
    way: Way, scene: Scene, call: type[Call[str]]
) -> None:
    scene.error_in_cleanup = OSError("cannot close")

    async with anyio.create_task_group() as tg:
        tg.start_soon(working := call(way, scene.device, scene.work))
        await turns()
        scene.other.disconnect(Killed())

    assert isinstance(working.error, CascadeCrash)
    assert working.error.__context__ is scene.error_in_cleanup
    assert not working.error.__suppress_context__
    assert scene.heard() == [scene.cascaded(Killed())]


@way
@pytest.mark.parametrize("error", [Disaster(), KeyboardInterrupt()], ids=repr)
async def test_a_disaster_in_the_cleanup_comes_out_and_the_message_is_the_fault(
    way: Way, error: BaseException, scene: Scene, call: type[Call[Any]]
) -> None:
    scene.error_in_cleanup = error

    async def work() -> object:
        with pytest.raises(type(error)) as caught:
            await way(scene.device, scene.work)
        return caught.value

    async with anyio.create_task_group() as tg:
        tg.start_soon(working := call(work))
        await turns()
        scene.other.disconnect(Killed())

    assert working.value is error
    assert scene.heard() == [scene.cascaded(Killed())]


@only_trio
@way
async def test_a_group_of_errors_of_the_cleanup_loses_its_cancellations(
    way: Way, scene: Scene
) -> None:
    async def fail_in_cleanup() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise Disaster

    async def work() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail_in_cleanup)
            nursery.start_soon(trio.sleep_forever)
            await turns()
            scene.other.disconnect(Killed())

    with pytest.raises(BaseExceptionGroup) as caught:
        await way(scene.device, work)

    assert [type(error) for error in caught.value.exceptions] == [Disaster]
    assert scene.heard() == [scene.cascaded(Killed())]


# -- the work brings its own end about ------------------------------------------------


async def give_up() -> None:
    """The step ends here."""


async def park() -> None:
    await anyio.sleep_forever()


async def fail() -> None:
    raise ValueError("and failed")


async def fail_badly() -> None:
    raise Disaster


async def await_what_is_cancelled() -> None:
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    future.cancel()
    await future  # raises at once


async def pass_and_go_on() -> None:
    try:
        await anyio.lowlevel.checkpoint()
    except (asyncio.CancelledError, trio.Cancelled):
        pass


OWN_STEPS = [give_up, park, fail, pass_and_go_on]


def stops(scene: Scene) -> dict[str, tuple[Callable[[], object], type[Crash], Fault | None]]:
    """How work can be stopped: what does it, what the caller gets, what is heard."""
    return {
        "fault": (
            lambda: scene.other.disconnect(Killed()),
            CascadeCrash,
            scene.cascaded(Killed()),
        ),
        "shutdown": (scene.device.line().shutdown, PowerOffCrash, None),
    }


@way
@pytest.mark.parametrize("stop", ["fault", "shutdown"])
@pytest.mark.parametrize("then", OWN_STEPS)
async def test_work_may_bring_its_own_end_about(
    way: Way, stop: str, then: Fn, scene: Scene, call: type[Call[None]]
) -> None:
    act, crash, fault = stops(scene)[stop]

    async def work() -> None:
        act()
        await then()

    async with anyio.create_task_group() as tg:
        tg.start_soon(working := call(way, scene.device, work))

    assert type(working.error) is crash
    assert isinstance(working.error.__context__, ValueError) == (then is fail)
    assert scene.heard() == [fault]


@way
@pytest.mark.parametrize("then", [*OWN_STEPS, fail_badly, await_what_is_cancelled])
async def test_an_end_from_within_leaves_no_cancellation_behind(
    way: Way, then: Fn, scene: Scene, anyio_backend_name: str
) -> None:
    if then is await_what_is_cancelled and anyio_backend_name == "trio":
        pytest.skip("trio's cancellations come from scopes alone")

    async def work() -> None:
        scene.other.disconnect(Killed())
        await then()

    with pytest.raises((Crash, Disaster)):
        await way(scene.device, work)

    await turns()  # meets a cancellation that was left behind
    assert scene.heard() == [scene.cascaded(Killed())]
    if anyio_backend_name == "asyncio":
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0


@only_asyncio
@way
async def test_an_end_from_within_keeps_a_cancellation_from_outside(
    way: Way, scene: Scene, call: type[Call[None]]
) -> None:
    working: Call[None]

    async def work() -> None:
        scene.other.disconnect(Killed())
        working.cancel()

    async with anyio.create_task_group() as tg:
        working = call(way, scene.device, work)
        tg.start_soon(working)

    assert working.cancelled
    assert scene.heard() == [scene.cascaded(Killed())]


# -- the caller is cancelled ----------------------------------------------------------


async def by_request(working: Call[Any]) -> None:
    """``task.cancel()``, or the ``cancel()`` of a scope of trio's."""
    async with anyio.create_task_group() as tg:
        tg.start_soon(working)
        await turns()
        working.cancel()


async def by_a_scope(working: Call[Any]) -> None:
    """A ``CancelScope`` of anyio's."""
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tg:
            tg.start_soon(scope_around, working)
            await turns()
            scope.cancel()
    assert scope.cancelled_caught


async def scope_around(working: Call[Any]) -> None:
    working.value = await working._fn(*working._args)


async def by_anyio_timeout(working: Call[Any]) -> None:
    with anyio.move_on_after(3600) as scope:
        await scope_around(working)
    assert scope.cancelled_caught


async def by_asyncio_timeout(working: Call[Any]) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(3600):
            await scope_around(working)


async def by_wait_for(working: Call[Any]) -> None:
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(scope_around(working), 3600)


async def by_a_failing_sibling_under_asyncio(working: Call[Any]) -> None:
    async def sibling() -> None:
        await turns()
        raise OSError

    with pytest.raises(ExceptionGroup):  # noqa: PT012
        async with asyncio.TaskGroup() as group:
            group.create_task(scope_around(working))
            group.create_task(sibling())


async def by_a_failing_child_under_asyncio(working: Call[Any]) -> None:
    async def child() -> None:
        await turns()
        raise OSError

    with pytest.raises(ExceptionGroup):  # noqa: PT012
        async with asyncio.TaskGroup() as group:
            group.create_task(child())
            await scope_around(working)


async def by_a_failing_sibling_under_trio(working: Call[Any]) -> None:
    async def sibling() -> None:
        await turns()
        raise OSError

    with pytest.raises(ExceptionGroup):  # noqa: PT012
        async with trio.open_nursery() as nursery:
            nursery.start_soon(scope_around, working)
            nursery.start_soon(sibling)


async def by_trio_timeout(working: Call[Any]) -> None:
    with pytest.raises(trio.TooSlowError), trio.fail_after(3600):
        await scope_around(working)


Cancel = Callable[["Call[Any]"], Awaitable[None]]
CANCELS: list[tuple[str, Cancel]] = [
    *((loop, by_request) for loop in ("asyncio", "uvloop", "trio")),
    *((loop, by_a_scope) for loop in ("asyncio", "uvloop", "trio")),
    ("virtual asyncio", by_anyio_timeout),
    ("virtual trio", by_anyio_timeout),
    ("virtual asyncio", by_asyncio_timeout),
    ("virtual asyncio", by_wait_for),
    ("virtual trio", by_trio_timeout),
    ("asyncio", by_a_failing_sibling_under_asyncio),
    ("uvloop", by_a_failing_sibling_under_asyncio),
    ("asyncio", by_a_failing_child_under_asyncio),
    ("uvloop", by_a_failing_child_under_asyncio),
    ("trio", by_a_failing_sibling_under_trio),
]
cancels = pytest.mark.parametrize(("anyio_backend", "cancel"), CANCELS, indirect=["anyio_backend"])


@way
@cancels
async def test_a_cancellation_from_outside_goes_on_outwards_and_is_the_fault(
    way: Way, cancel: Cancel, scene: Scene, call: type[Call[Any]]
) -> None:
    async def outcome() -> None:
        try:
            await way(scene.device, scene.work)
        except (asyncio.CancelledError, trio.Cancelled):
            scene.diary.append("cancelled")
            raise

    await cancel(call(outcome))

    assert scene.diary == ["begin", "cleaned up", "cancelled"]
    assert scene.heard() == [Cancelled()]
    await turns()


@way
@cancels
async def test_a_cancellation_that_meets_a_message_goes_on_outwards(
    way: Way, cancel: Cancel, scene: Scene, call: type[Call[Any]]
) -> None:
    """The message comes while the work cleans up after the cancellation."""

    async def work() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                scene.device.line().shutdown()
                try:
                    await turns(3)
                except asyncio.CancelledError:
                    pass  # an anyio shield does not hold a message off

    async def outcome() -> None:
        try:
            await way(scene.device, work)
        except (asyncio.CancelledError, trio.Cancelled):
            scene.diary.append("cancelled")
            raise

    await cancel(call(outcome))

    assert scene.diary == ["cancelled"]
    assert scene.heard() == [None]
    await turns()


@way
@pytest.mark.parametrize("first", ["message", "cancellation"])
async def test_of_a_message_and_a_cancellation_in_one_turn_the_caller_gets_the_cancellation(
    way: Way, first: str, scene: Scene, call: type[Call[str]]
) -> None:
    async with anyio.create_task_group() as tg:
        tg.start_soon(working := call(way, scene.device, scene.work))
        await turns()
        if first == "cancellation":
            working.cancel()
        scene.other.disconnect(Killed())
        if first == "message":
            working.cancel()

    assert working.cancelled
    assert scene.diary == ["begin", "cleaned up"]
    assert scene.heard() == [scene.cascaded(Killed())]


@way
async def test_a_failing_cleanup_after_a_cancellation_is_the_fault(
    way: Way, scene: Scene, call: type[Call[Any]]
) -> None:
    scene.error_in_cleanup = OSError("cannot close")

    async def outcome() -> object:
        with pytest.raises(OSError, match="cannot close") as caught:
            await way(scene.device, scene.work)
        return caught.value

    async with anyio.create_task_group() as tg:
        tg.start_soon(working := call(outcome))
        await turns()
        working.cancel()

    assert working.value is scene.error_in_cleanup
    assert scene.heard() == [Failed(scene.error_in_cleanup)]


@way
async def test_work_that_is_cancelled_before_it_begins_ends_its_device(
    way: Way, scene: Scene
) -> None:
    with anyio.CancelScope() as scope:
        scope.cancel()
        await way(scene.device, anyio.sleep_forever)

    assert scope.cancelled_caught
    assert scene.heard() == [Cancelled()]


@way
@pytest.mark.parametrize("cleanup", [0, 2], ids=lambda cleanup: f"cleanup {cleanup}")
async def test_work_that_is_cancelled_at_any_turn_ends_its_device_once(
    way: Way, cleanup: int, call: type[Call[None]]
) -> None:
    async def work() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await turns(cleanup)

    for stop, cancelled in itertools.product([None, *range(6)], range(8)):
        scene = Scene()

        async def outcome(device: Device) -> None:
            try:
                await way(device, work)
            finally:
                with pytest.raises(LookupError):
                    current_device()

        async with anyio.create_task_group() as tg:
            tg.start_soon(working := call(outcome, scene.device))
            for turn in range(8):
                if turn == stop:
                    scene.other.disconnect(Killed())
                if turn == cancelled and not working.over:
                    working.cancel()
                await turns(1)
            await working.wait()

        faults = scene.heard()
        assert faults in ([Cancelled()], [scene.cascaded(Killed())]), (stop, cancelled)
        if not working.cancelled:
            assert isinstance(working.error, CascadeCrash), (stop, cancelled)
            assert faults == [scene.cascaded(Killed())], (stop, cancelled)
        with pytest.raises(DeviceDownError):
            await scene.device.receive()  # nobody holds the mailbox any longer


async def test_cancelling_a_watch_at_any_turn_leaves_the_links_of_its_device_alone(
    call: type[Call[Any]],
) -> None:
    for cancelled in range(6):
        scene = Scene()

        async with anyio.create_task_group() as tg:
            tg.start_soon(watching := call(scene.device.watch, turns, 4))
            await turns(cancelled)
            if not watching.over:
                watching.cancel()
        scene.other.disconnect(Killed())

        assert heard(scene.device) == [Disconnected(scene.other.id, Killed())]
        scene.device.disconnect()
        assert scene.heard() == [None]


@only_asyncio
@way
@pytest.mark.parametrize("steps", [1, 2, 3])
async def test_work_that_is_closed_while_it_waits_drops_its_device(
    way: Way, steps: int, scene: Scene
) -> None:
    async def work() -> None:
        for _ in range(5):
            await asyncio.sleep(0)

    working: Any = way(scene.device, work)
    for _ in range(steps):
        working.send(None)  # as a task does, from one wait to the next

    working.close()

    assert scene.heard() == [Dropped()]
    with pytest.raises(LookupError):
        current_device()
    with pytest.raises(DeviceDownError):
        await scene.device.receive()  # nobody holds the mailbox any longer


@pytest.mark.skipif(
    sys.version_info >= (3, 13), reason="uncancel() takes the request back: there is no such wait"
)
@only_asyncio
@way
async def test_work_that_is_closed_in_its_very_last_wait_gives_the_mailbox_back(
    way: Way, scene: Scene
) -> None:
    """That wait meets the cancellation which the work has not met."""

    async def work() -> None:
        scene.other.disconnect(Killed())

    working: Any = way(scene.device, work)
    working.send(None)

    working.close()

    with pytest.raises(asyncio.CancelledError):  # nobody was left to meet it
        await asyncio.sleep(0)
    scene.device.disconnect()
    with pytest.raises(DeviceDownError):
        await scene.device.receive()
    assert len(scene.heard()) == 1


# -- one at a time --------------------------------------------------------------------


@way
@pytest.mark.parametrize("verb", ["receive", "iterate", "watch", *WAYS], ids=str)
async def test_nobody_else_gets_the_messages_of_a_device_at_work(
    way: Way, verb: str | Way, scene: Scene, call: type[Call[str]]
) -> None:
    async def refused() -> None:
        pytest.fail("was called")

    async def attempt() -> None:
        match verb:
            case "receive":
                await scene.device.receive()
            case "iterate":
                await anext(aiter(scene.device))
            case "watch":
                await scene.device.watch(refused)
            case _:
                assert callable(verb)
                await verb(scene.device, refused)

    async with anyio.create_task_group() as tg:
        tg.start_soon(working := call(way, scene.device, scene.work))
        await turns()
        with pytest.raises(anyio.BusyResourceError, match="'worker'"):
            await attempt()
        assert scene.device.connected
        assert scene.heard() == []
        scene.other.disconnect(Killed())

    assert isinstance(working.error, CascadeCrash)


@way
async def test_work_cannot_be_managed_by_the_device_that_manages_it(way: Way, scene: Scene) -> None:
    async def work() -> str:
        with pytest.raises(anyio.BusyResourceError, match="cannot manage"):
            await scene.device.manage(scene.work)
        return "value"

    assert await way(scene.device, work) == "value"


@way
async def test_work_needs_a_free_mailbox(way: Way, scene: Scene, call: type[Call[Message]]) -> None:
    async with anyio.create_task_group() as tg:
        tg.start_soon(receiving := call(scene.device.receive))
        await turns()
        with pytest.raises(anyio.BusyResourceError):
            await way(scene.device, scene.work)
        scene.device.line().shutdown()

    assert receiving.value == Shutdown(None)
    assert scene.device.connected
    assert scene.diary == []


# -- the end of the Device ------------------------------------------------------------


@way
async def test_an_ended_device_manages_nothing(way: Way, scene: Scene) -> None:
    scene.device.disconnect()

    with pytest.raises(DeviceDownError, match="cannot manage") as caught:
        await way(scene.device, scene.work)

    assert caught.value.device == scene.device.id
    assert scene.diary == []


async def test_a_device_manages_nothing_after_it_has_managed(scene: Scene) -> None:
    scene.released.set()
    await scene.device.manage(scene.work)

    with pytest.raises(DeviceDownError):
        await scene.device.manage(scene.work)


@way
async def test_work_goes_on_when_its_device_is_ended_by_hand(
    way: Way, scene: Scene, call: type[Call[str]]
) -> None:
    async def work() -> str:
        await scene.released.wait()
        return "value"

    async with anyio.create_task_group() as tg:
        tg.start_soon(working := call(way, scene.device, work))
        await turns()
        scene.device.disconnect(Killed())
        assert not scene.device.line().shutdown()
        await turns()
        assert not working.over
        scene.released.set()

    assert working.value == "value"
    assert scene.heard() == [Killed()]


async def test_a_block_can_be_managed_under_the_device_of_another_name(scene: Scene) -> None:
    block = scene.device.managed()
    assert scene.device.connected

    async with block:
        assert current_device() is scene.device

    assert scene.heard() == [None]


async def test_a_managed_block_is_not_entered_when_there_is_a_reason_to_stop(
    scene: Scene,
) -> None:
    scene.other.disconnect(Killed())

    with pytest.raises(CascadeCrash):
        async with scene.device.managed():
            pytest.fail("entered")

    assert scene.heard() == [scene.cascaded(Killed())]


async def test_a_device_that_its_owner_forgets_lives_as_long_as_it_works(
    call: type[Call[str]],
) -> None:
    device, released = Device(), anyio.Event()
    line = device.line()

    async def work() -> str:
        await released.wait()
        return "value"

    async def begin(owner: list[Device]) -> str:
        return await owner.pop().manage(work)

    async with anyio.create_task_group() as tg:
        tg.start_soon(working := call(begin, [device]))
        del device
        await turns()
        gc.collect()
        assert line.connected
        released.set()

    assert working.value == "value"
    assert not line.connected


# -- bad input ------------------------------------------------------------------------

FUNCTION_WAYS = ["manage", "part_manage"]
function_way = pytest.mark.parametrize("verb", FUNCTION_WAYS)


@function_way
async def test_a_coroutine_is_refused_and_not_left_unawaited(verb: str, scene: Scene) -> None:
    with pytest.raises(TypeError, match=r"write (part_)?manage\(fn, arg\), not"):
        await getattr(scene.device, verb)(scene.work())

    assert scene.device.connected
    assert scene.heard() == []


@function_way
async def test_an_error_about_a_coroutine_says_what_to_write(verb: str, scene: Scene) -> None:
    with pytest.raises(TypeError) as caught:
        await getattr(scene.device, verb)(scene.work())

    assert f"write {verb}(fn, arg), not {verb}(fn(arg))" in str(caught.value)


@function_way
@pytest.mark.parametrize("thing", [None, "work", 5, Device()], ids=object.__repr__)
async def test_only_functions_can_be_managed(verb: str, thing: Any, scene: Scene) -> None:
    with pytest.raises(TypeError, match=f"not a {type(thing).__qualname__}$"):
        await getattr(scene.device, verb)(thing)

    assert scene.device.connected
    assert scene.heard() == []


@function_way
async def test_a_function_that_is_not_async_is_refused_and_is_the_fault(
    verb: str, scene: Scene
) -> None:
    def work() -> str:
        return "value"

    with pytest.raises(TypeError, match=r"work returned a str, which cannot be awaited") as caught:
        await getattr(scene.device, verb)(work)

    assert scene.heard() == [Failed(caught.value)]


@function_way
async def test_a_generator_is_refused(verb: str, scene: Scene) -> None:
    async def work() -> AsyncIterator[int]:
        yield 1

    with pytest.raises(TypeError, match=r"cannot be awaited"):
        await getattr(scene.device, verb)(work)


@function_way
async def test_a_wrong_argument_is_the_error_of_the_work(verb: str, scene: Scene) -> None:
    with pytest.raises(TypeError, match="positional argument") as caught:
        await getattr(scene.device, verb)(scene.work, "too many")

    assert scene.heard() == [Failed(caught.value)]
