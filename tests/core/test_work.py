"""Managed work among what else runs: its context, nested work, scopes, timeouts and task groups."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import itertools
import sys
import threading
import tracemalloc
import weakref
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
import trio

from backplane import (
    Cancelled,
    CascadeCrash,
    Cascaded,
    Crash,
    Device,
    DeviceID,
    Disconnected,
    Dropped,
    Failed,
    Fault,
    Killed,
    LinkMode,
    Message,
    PowerOffCrash,
    current_device,
)
from backplane.lowlevel import Job, start_job

if TYPE_CHECKING:
    from conftest import Call

pytestmark = pytest.mark.anyio

Fn = Callable[[], Coroutine[Any, Any, Any]]
Way = Callable[[Device, Fn], Awaitable[Any]]

MONITOR = LinkMode.MONITOR
ENOUGH = 10  # turns of a loop, for whatever is going on to come to a rest


async def manage(device: Device, fn: Fn) -> Any:
    return await device.manage(fn)


async def part_manage(device: Device, fn: Fn) -> Any:
    return await device.part_manage(fn)


async def managed(device: Device, fn: Fn) -> Any:
    async with device.managed():
        return await fn()


way = pytest.mark.parametrize("way", [manage, part_manage, managed])
only_asyncio = pytest.mark.parametrize("anyio_backend", ["asyncio", "uvloop"], indirect=True)
only_trio = pytest.mark.parametrize("anyio_backend", ["trio"], indirect=True)
virtual_asyncio = pytest.mark.parametrize("anyio_backend", ["virtual asyncio"], indirect=True)
virtual = pytest.mark.parametrize(
    "anyio_backend", ["virtual asyncio", "virtual trio"], indirect=True
)


async def turns(count: int = ENOUGH) -> None:
    for _ in range(count):
        await anyio.lowlevel.checkpoint()


async def shielded_turns(count: int = 3) -> None:
    with anyio.CancelScope(shield=True):
        await turns(count)


def heard(device: Device) -> list[Message]:
    """All that is in the mailbox, taken out."""
    messages = []
    while True:
        try:
            messages.append(device.receive_nowait())
        except anyio.WouldBlock:
            return messages


class Scene:
    """A Device that works, what it depends on, and who hears of its end."""

    def __init__(self, name: str = "worker") -> None:
        self.device = Device(name)
        self.other = Device(f"other of {name}")
        self.device.link(self.other, MONITOR)
        self.listener = Device(f"listener of {name}")
        self.listener.link(self.device, MONITOR)

    def stop(self) -> None:
        """Send a message that stops the work."""
        self.other.disconnect(Killed())

    @property
    def cascaded(self) -> Fault:
        """The fault of the Device when `stop` has stopped its work."""
        return Cascaded(self.other.id, Killed())

    def heard(self) -> list[Fault | None]:
        """The faults with which the Device has been heard to end."""
        return [m.fault for m in heard(self.listener) if isinstance(m, Disconnected)]


@pytest.fixture
def scene() -> Scene:
    return Scene()


def device_or_none() -> Device | None:
    try:
        return current_device()
    except LookupError:
        return None


# -- the current Device ---------------------------------------------------------------


def test_code_outside_of_work_has_no_current_device() -> None:
    with pytest.raises(LookupError, match=r"run it under Device\.manage\(\)"):
        current_device()


@way
async def test_the_current_device_is_the_one_that_manages(way: Way, scene: Scene) -> None:
    async def deeper() -> Device:
        await anyio.lowlevel.checkpoint()
        return current_device()

    async def work() -> tuple[Device, Device]:
        return current_device(), await deeper()

    assert await way(scene.device, work) == (scene.device, scene.device)
    assert device_or_none() is None


@way
async def test_work_that_fails_is_no_longer_current(way: Way, scene: Scene) -> None:
    async def work() -> None:
        raise ValueError("boom")

    with pytest.raises(ValueError, match="boom"):
        await way(scene.device, work)

    assert device_or_none() is None


@way
async def test_work_that_is_stopped_is_no_longer_current(way: Way, scene: Scene) -> None:
    async def work() -> None:
        scene.stop()
        await anyio.sleep_forever()

    with pytest.raises(CascadeCrash):
        await way(scene.device, work)

    assert device_or_none() is None


@way
async def test_work_that_does_not_begin_is_never_current(way: Way, scene: Scene) -> None:
    scene.stop()

    with pytest.raises(CascadeCrash):
        await way(scene.device, anyio.sleep_forever)

    assert device_or_none() is None


@way
async def test_the_innermost_of_several_devices_is_current(way: Way) -> None:
    outer, inner = Device("outer"), Device("inner")
    seen = []

    async def inner_work() -> None:
        seen.append(current_device())

    async def outer_work() -> None:
        seen.append(current_device())
        await way(inner, inner_work)
        seen.append(current_device())

    await way(outer, outer_work)

    assert seen == [outer, inner, outer]


async def test_a_watched_function_keeps_the_current_device_of_its_caller(scene: Scene) -> None:
    watcher = Device("watcher")

    async def look() -> Device | None:
        return device_or_none()

    async def work() -> object:
        return await watcher.watch(look)

    outcome: Any = await scene.device.manage(work)

    assert outcome.value is scene.device


@way
async def test_tasks_that_work_starts_belong_to_it(way: Way, scene: Scene) -> None:
    seen = []

    async def child() -> None:
        seen.append(current_device())

    async def work() -> None:
        async with anyio.create_task_group() as tg:
            tg.start_soon(child)
            tg.start_soon(child)

    await way(scene.device, work)

    assert seen == [scene.device, scene.device]


@way
async def test_threads_that_work_starts_belong_to_it(way: Way, scene: Scene) -> None:
    async def work() -> Device:
        return await anyio.to_thread.run_sync(current_device)

    assert await way(scene.device, work) is scene.device


async def test_a_bare_thread_belongs_to_nobody(scene: Scene) -> None:
    seen: list[Device | None] = []

    async def work() -> None:
        context = contextvars.Context()
        thread = threading.Thread(target=lambda: seen.append(context.run(device_or_none)))
        thread.start()
        thread.join()

    await scene.device.manage(work)

    assert seen == [None]


@way
async def test_a_task_that_outlives_the_work_no_longer_belongs_to_it(
    way: Way, scene: Scene
) -> None:
    seen: list[Device | None] = []
    over = anyio.Event()

    async def child() -> None:
        seen.append(device_or_none())
        await over.wait()
        seen.append(device_or_none())

    async with anyio.create_task_group() as tg:

        async def work() -> None:
            tg.start_soon(child)
            await turns()

        await way(scene.device, work)
        over.set()

    assert seen == [scene.device, None]


async def test_a_task_that_outlives_inner_work_belongs_to_the_outer() -> None:
    outer, inner = Device("outer"), Device("inner")
    seen: list[Device | None] = []
    over = anyio.Event()

    async def child() -> None:
        seen.append(device_or_none())
        await over.wait()
        seen.append(device_or_none())

    async def outer_work() -> None:
        async with anyio.create_task_group() as tg:

            async def inner_work() -> None:
                tg.start_soon(child)
                await turns()

            await inner.manage(inner_work)
            over.set()

    await outer.manage(outer_work)

    assert seen == [inner, outer]


async def test_a_context_that_outlives_the_work_does_not_keep_its_device_alive() -> None:
    async def work() -> contextvars.Context:
        return contextvars.copy_context()

    device = Device()
    context = await device.manage(work)
    there = weakref.ref(device)

    del device
    gc.collect()

    assert there() is None
    assert context.run(device_or_none) is None


@only_asyncio
async def test_work_that_is_closed_in_another_context_is_no_longer_current_there(
    scene: Scene,
) -> None:
    working: Any = scene.device.manage(anyio.sleep_forever)
    inside, outside = contextvars.copy_context(), contextvars.copy_context()
    inside.run(working.send, None)
    assert inside.run(device_or_none) is scene.device

    outside.run(working.close)

    assert outside.run(device_or_none) is None
    assert inside.run(device_or_none) is None
    assert scene.heard() == [Dropped()]


async def test_work_that_starts_its_own_successor_for_ever_leaves_nothing_behind() -> None:
    """Each one begins in a copy of the context of the one before."""
    generations, measured = 600, []

    async def generation(number: int) -> None:
        async def work() -> None:
            if number % 200 == 0:
                gc.collect()
                measured.append(tracemalloc.get_traced_memory()[0])
            if number < generations:
                tg.start_soon(generation, number + 1)

        await Device().manage(work)

    tracemalloc.start()
    try:
        async with anyio.create_task_group() as tg:
            tg.start_soon(generation, 1)
    finally:
        tracemalloc.stop()

    early, _, late = measured
    assert late - early < 20_000  # 50 bytes a generation, for what a loop may keep


# -- messages that a finalizer sends while others are looked at -------------------------


class Omen(int):
    """A serial number: when the last message that names it is dropped, something happens."""

    then: Callable[[], object]

    @classmethod
    def of(cls, then: Callable[[], object]) -> Message:
        """A message that stops no work, and does this when it is dropped."""
        omen = cls(1)
        omen.then = then
        return Disconnected(DeviceID(omen), None)

    def __del__(self) -> None:
        self.then()


@way
async def test_work_does_not_begin_when_the_look_at_old_messages_brings_a_new_one(
    way: Way, scene: Scene
) -> None:
    async def work() -> None:
        pytest.fail("the work has begun")

    scene.device.line().send(Omen.of(scene.stop))
    assert scene.other.connected

    with pytest.raises(CascadeCrash):
        await way(scene.device, work)

    assert scene.heard() == [scene.cascaded]
    await turns(1)  # meets a cancellation that is left behind


@way
async def test_a_message_that_comes_while_another_stops_the_work_does_not_stop_it_again(
    way: Way, scene: Scene, call: type[Call[None]]
) -> None:
    line, boss = scene.device.line(), Device("boss")
    omens = [Omen.of(scene.stop)]

    def send() -> None:
        line.send(omens.pop())
        line.shutdown(boss.id)

    async def work() -> None:
        thread = threading.Thread(target=send)  # its messages are here before its wake
        thread.start()
        thread.join()
        connected = [scene.other.connected]
        line.send(Disconnected(boss.id, None))  # so this one has them looked at
        connected.append(scene.other.connected)
        assert connected == [True, False]
        await anyio.sleep_forever()

    async with anyio.create_task_group() as tg:
        tg.start_soon(working := call(way, scene.device, work))

    assert isinstance(working.error, PowerOffCrash)
    assert working.error.sender == boss.id
    assert scene.heard() == [None]


# -- work in a job --------------------------------------------------------------------


@way
async def test_work_that_is_killed_ends_its_device_with_killed(way: Way, scene: Scene) -> None:
    ended: list[Job] = []
    job = start_job(
        partial(way, scene.device, anyio.sleep_forever), ended.append, scene.device.name or ""
    )
    await turns()
    assert scene.device.connected

    assert await job.kill()

    assert ended == [job]
    assert scene.heard() == [Killed()]


@way
async def test_work_that_is_cancelled_with_its_job_ends_its_device_with_cancelled(
    way: Way, scene: Scene
) -> None:
    ended = anyio.Event()
    job = start_job(
        partial(way, scene.device, anyio.sleep_forever), lambda _: ended.set(), "worker"
    )
    await turns()

    job.cancel()
    await ended.wait()

    assert scene.heard() == [Cancelled()]


# -- nested work ----------------------------------------------------------------------


@way
async def test_a_message_to_inner_work_leaves_the_outer_alone(way: Way) -> None:
    outer, inner = Scene("outer"), Scene("inner")

    async def inner_work() -> None:
        inner.stop()
        await anyio.sleep_forever()

    async def outer_work() -> str:
        with pytest.raises(CascadeCrash) as caught:
            await way(inner.device, inner_work)
        assert caught.value.sender == inner.other.id
        await turns()
        return "went on"

    assert await way(outer.device, outer_work) == "went on"
    assert inner.heard() == [inner.cascaded]
    assert outer.heard() == ([] if way is part_manage else [None])


@way
async def test_a_crash_of_inner_work_is_an_exception_of_the_outer(way: Way) -> None:
    outer, inner = Scene("outer"), Scene("inner")

    async def inner_work() -> None:
        inner.stop()
        await anyio.sleep_forever()

    async def outer_work() -> None:
        await way(inner.device, inner_work)

    with pytest.raises(CascadeCrash) as caught:
        await way(outer.device, outer_work)

    assert outer.heard() == [Failed(caught.value)]


@way
async def test_a_message_to_outer_work_cancels_the_inner(way: Way, call: type[Call[None]]) -> None:
    outer, inner = Scene("outer"), Scene("inner")

    async def outer_work() -> None:
        await way(inner.device, anyio.sleep_forever)

    async with anyio.create_task_group() as tg:
        tg.start_soon(working := call(way, outer.device, outer_work))
        await turns()
        outer.stop()

    assert isinstance(working.error, CascadeCrash)
    assert working.error.sender == outer.other.id
    assert inner.heard() == [Cancelled()]
    assert outer.heard() == [outer.cascaded]


@way
@pytest.mark.parametrize("first", ["outer", "inner"])
async def test_messages_to_both_in_one_turn_stop_both(
    way: Way, first: str, call: type[Call[None]]
) -> None:
    outer, inner = Scene("outer"), Scene("inner")

    async def outer_work() -> None:
        await way(inner.device, anyio.sleep_forever)
        pytest.fail("the inner work came to an end")

    async with anyio.create_task_group() as tg:
        tg.start_soon(working := call(way, outer.device, outer_work))
        await turns()
        for stopped in (outer, inner) if first == "outer" else (inner, outer):
            stopped.stop()

    assert isinstance(working.error, CascadeCrash)
    assert working.error.sender == outer.other.id
    assert inner.heard() == [inner.cascaded]
    assert outer.heard() == [outer.cascaded]


@way
async def test_a_message_to_the_inner_after_one_to_the_outer_stops_its_cleanup(
    way: Way, call: type[Call[None]]
) -> None:
    outer, inner = Scene("outer"), Scene("inner")

    async def inner_work() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            inner.stop()
            try:
                await shielded_turns()
            except asyncio.CancelledError:
                pass  # an anyio shield does not hold a message off

    async def outer_work() -> None:
        await way(inner.device, inner_work)

    async with anyio.create_task_group() as tg:
        tg.start_soon(working := call(way, outer.device, outer_work))
        await turns()
        outer.stop()

    assert isinstance(working.error, CascadeCrash)
    assert working.error.sender == outer.other.id
    assert inner.heard() == [inner.cascaded]


@way
async def test_cleanup_may_itself_be_managed(way: Way, call: type[Call[None]]) -> None:
    outer, inner = Scene("outer"), Scene("inner")
    diary = []

    async def cleanup() -> None:
        with anyio.CancelScope(shield=True):
            await turns(3)
        diary.append("cleaned up")

    async def outer_work() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await way(inner.device, cleanup)

    async with anyio.create_task_group() as tg:
        tg.start_soon(working := call(way, outer.device, outer_work))
        await turns()
        outer.stop()

    assert isinstance(working.error, CascadeCrash)
    assert diary == ["cleaned up"]


@way
async def test_managed_cleanup_may_be_stopped_by_a_message_of_its_own(
    way: Way, call: type[Call[None]]
) -> None:
    outer, inner = Scene("outer"), Scene("inner")
    crashes = []

    async def cleanup() -> None:
        inner.stop()
        await anyio.sleep_forever()

    async def outer_work() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                try:
                    await way(inner.device, cleanup)
                except CascadeCrash as crash:
                    crashes.append(crash.sender)

    async with anyio.create_task_group() as tg:
        tg.start_soon(working := call(way, outer.device, outer_work))
        await turns()
        outer.stop()

    assert isinstance(working.error, CascadeCrash)
    assert working.error.sender == outer.other.id
    assert crashes == [inner.other.id]


@way
async def test_managed_cleanup_may_bring_its_own_end_about_in_its_last_step(
    way: Way, call: type[Call[None]]
) -> None:
    outer, inner = Scene("outer"), Scene("inner")
    diary = []

    async def cleanup() -> None:
        inner.stop()

    async def outer_work() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                with pytest.raises(CascadeCrash):
                    await way(inner.device, cleanup)
                await turns()  # meets a cancellation that was left behind
            diary.append("cleaned up")

    async with anyio.create_task_group() as tg:
        tg.start_soon(working := call(way, outer.device, outer_work))
        await turns()
        outer.stop()

    assert isinstance(working.error, CascadeCrash)
    assert working.error.sender == outer.other.id
    assert diary == ["cleaned up"]
    assert inner.heard() == [inner.cascaded]


@way
async def test_a_cancellation_ends_outer_and_inner_work(way: Way, call: type[Call[None]]) -> None:
    outer, inner = Scene("outer"), Scene("inner")

    async def outer_work() -> None:
        await way(inner.device, anyio.sleep_forever)

    async with anyio.create_task_group() as tg:
        tg.start_soon(working := call(way, outer.device, outer_work))
        await turns()
        working.cancel()

    assert working.cancelled
    assert inner.heard() == [Cancelled()]
    assert outer.heard() == [Cancelled()]


@virtual
@way
async def test_outer_work_that_has_stopped_itself_ends_though_the_inner_crashes(way: Way) -> None:
    """Both are stopped in one and the same step, the outer before the inner begins."""
    outer, inner = Scene("outer"), Scene("inner")

    async def inner_work() -> None:
        inner.stop()
        await anyio.sleep_forever()

    async def outer_work() -> None:
        outer.stop()
        try:
            await way(inner.device, inner_work)
        except Crash:
            pass
        await anyio.sleep_forever()

    with anyio.fail_after(3600), pytest.raises(CascadeCrash) as caught:
        await way(outer.device, outer_work)

    assert caught.value.sender == outer.other.id


@only_asyncio
@way
async def test_a_cancellation_that_the_work_has_met_and_swallowed_does_not_come_back(
    way: Way, scene: Scene
) -> None:
    """It was on its way when the work began; a message stops the work some turns later."""
    task = asyncio.current_task()
    assert task is not None

    async def work() -> None:
        with pytest.raises(asyncio.CancelledError):
            await asyncio.sleep(0)
        asyncio.get_running_loop().call_soon(scene.stop)
        await anyio.sleep_forever()

    task.cancel()
    with pytest.raises(CascadeCrash):
        await way(scene.device, work)

    try:
        await asyncio.sleep(0)
    finally:
        task.uncancel()
    assert task.cancelling() == 0


async def test_watched_work_may_be_managed_and_managed_work_may_watch() -> None:
    outer, inner = Scene("outer"), Scene("inner")
    watcher = Device("watcher")

    async def inner_work() -> str:
        await anyio.sleep_forever()
        return "value"

    async def watched() -> str:
        return await inner.device.manage(inner_work)

    async def outer_work() -> object:
        watcher.line().shutdown()
        await watcher.receive()
        async with anyio.create_task_group() as tg:
            tg.start_soon(stop_soon)
            return await watcher.watch(watched)
        pytest.fail("the group was cancelled")

    async def stop_soon() -> None:
        await turns()
        watcher.line().shutdown()

    outcome: Any = await outer.device.manage(outer_work)

    assert outcome.message.sender is None
    assert inner.heard() == [Cancelled()]
    assert outer.heard() == [None]


# -- scopes and timeouts inside the work ----------------------------------------------


@way
async def test_a_scope_inside_the_work_does_not_hold_its_end_up(
    way: Way, scene: Scene, call: type[Call[None]]
) -> None:
    scopes = []

    async def work() -> None:
        with anyio.CancelScope() as scope:
            scopes.append(scope)
            await anyio.sleep_forever()
        pytest.fail("the scope has swallowed the end of the work")

    async with anyio.create_task_group() as tg:
        tg.start_soon(working := call(way, scene.device, work))
        await turns()
        scene.stop()

    assert isinstance(working.error, CascadeCrash)
    assert not scopes[0].cancelled_caught


@way
@pytest.mark.parametrize("first", ["scope", "message"])
async def test_a_scope_that_is_cancelled_in_the_turn_of_a_message_does_not_hold_the_end_up(
    way: Way, first: str, scene: Scene, call: type[Call[None]]
) -> None:
    scopes: list[anyio.CancelScope] = []

    async def work() -> None:
        with anyio.CancelScope() as scope:
            scopes.append(scope)
            await anyio.sleep_forever()
        await turns()

    async with anyio.create_task_group() as tg:
        tg.start_soon(working := call(way, scene.device, work))
        await turns()
        if first == "scope":
            scopes[0].cancel()
        scene.stop()
        if first == "message":
            scopes[0].cancel()

    assert isinstance(working.error, CascadeCrash)
    assert scene.heard() == [scene.cascaded]


@way
async def test_a_scope_that_the_work_cancels_is_its_own_affair(way: Way, scene: Scene) -> None:
    async def work() -> str:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await anyio.sleep_forever()
        await turns()
        return "went on"

    assert await way(scene.device, work) == "went on"


@only_trio
@way
async def test_a_shield_of_trio_holds_a_message_off(
    way: Way, scene: Scene, call: type[Call[None]]
) -> None:
    diary = []

    async def work() -> None:
        with trio.CancelScope(shield=True):
            await turns()
            diary.append("shielded work done")
        await trio.lowlevel.checkpoint()
        pytest.fail("not stopped")

    async with anyio.create_task_group() as tg:
        tg.start_soon(working := call(way, scene.device, work))
        await turns(3)
        scene.stop()
        assert diary == []

    assert isinstance(working.error, CascadeCrash)
    assert diary == ["shielded work done"]


@only_asyncio
@way
async def test_a_shield_of_anyio_does_not_hold_a_message_off_on_asyncio(
    way: Way, scene: Scene, call: type[Call[None]]
) -> None:
    async def work() -> None:
        with anyio.CancelScope(shield=True):
            await anyio.sleep_forever()

    async with anyio.create_task_group() as tg:
        tg.start_soon(working := call(way, scene.device, work))
        await turns()
        scene.stop()

    assert isinstance(working.error, CascadeCrash)


@only_asyncio
@way
async def test_asyncio_shield_lets_the_work_end_and_what_it_shields_go_on(
    way: Way, scene: Scene, call: type[Call[None]]
) -> None:
    release = asyncio.Event()
    inner = asyncio.ensure_future(release.wait())

    async def work() -> None:
        await asyncio.shield(inner)

    async with anyio.create_task_group() as tg:
        tg.start_soon(working := call(way, scene.device, work))
        await turns()
        scene.stop()

    assert isinstance(working.error, CascadeCrash)
    assert not inner.done()
    release.set()
    assert await inner is True


@virtual
@way
async def test_a_timeout_of_anyio_inside_the_work_is_its_own_affair(way: Way, scene: Scene) -> None:
    async def work() -> str:
        with pytest.raises(TimeoutError), anyio.fail_after(60):
            await anyio.sleep_forever()
        await turns()
        return "went on"

    assert await way(scene.device, work) == "went on"
    assert anyio.current_time() == pytest.approx(60)


@virtual_asyncio
@way
async def test_a_timeout_of_asyncio_inside_the_work_is_its_own_affair(
    way: Way, scene: Scene
) -> None:
    async def work() -> str:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(60):
                await anyio.sleep_forever()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.Event().wait(), 60)
        await turns()
        return "went on"

    assert await way(scene.device, work) == "went on"
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


@virtual_asyncio
@way
async def test_a_timeout_of_asyncio_inside_does_not_take_a_message_for_its_own(
    way: Way, scene: Scene, call: type[Call[None]]
) -> None:
    async def work() -> None:
        async with asyncio.timeout(60):
            await anyio.sleep_forever()

    async with anyio.create_task_group() as tg:
        tg.start_soon(working := call(way, scene.device, work))
        await turns()
        scene.stop()

    assert isinstance(working.error, CascadeCrash)


async def at(seconds: float, fn: Callable[[], object]) -> None:
    await anyio.sleep(seconds)
    fn()


@virtual
@way
@pytest.mark.parametrize("offset", [-0.5, 0, 0.5])
async def test_a_timeout_inside_and_a_message_at_about_the_same_time_end_the_work(
    way: Way, offset: float, scene: Scene, call: type[Call[None]]
) -> None:
    async def work() -> None:
        with anyio.move_on_after(60):
            await anyio.sleep_forever()
        await anyio.sleep_forever()

    async with anyio.create_task_group() as tg:
        tg.start_soon(at, 60 + offset, scene.stop)
        tg.start_soon(working := call(way, scene.device, work))

    assert isinstance(working.error, CascadeCrash)
    assert scene.heard() == [scene.cascaded]


@virtual_asyncio
@way
@pytest.mark.parametrize("offset", [-0.5, 0, 0.5])
@pytest.mark.parametrize("message_first", [False, True])
async def test_a_timeout_of_asyncio_inside_at_the_time_of_a_message_ends_the_work(
    way: Way, offset: float, message_first: bool, scene: Scene, call: type[Call[None]]
) -> None:
    async def work() -> None:
        try:
            async with asyncio.timeout(60):
                await anyio.sleep_forever()
        except TimeoutError:
            pass
        await anyio.sleep_forever()

    async with anyio.create_task_group() as tg:
        if message_first:
            tg.start_soon(at, 60 + offset, scene.stop)
        tg.start_soon(working := call(way, scene.device, work))
        if not message_first:
            tg.start_soon(at, 60 + offset, scene.stop)

    assert isinstance(working.error, CascadeCrash)
    assert scene.heard() == [scene.cascaded]


# -- scopes and timeouts around the work ----------------------------------------------


@way
async def test_a_message_ends_work_in_a_shield(
    way: Way, scene: Scene, call: type[Call[None]]
) -> None:
    async def shielded() -> None:
        with anyio.CancelScope(shield=True):
            await way(scene.device, anyio.sleep_forever)

    async with anyio.create_task_group() as tg:
        tg.start_soon(working := call(shielded))
        await turns()
        scene.stop()

    assert isinstance(working.error, CascadeCrash)


@virtual
@way
@pytest.mark.parametrize("offset", [-0.5, 0, 0.5])
async def test_a_timeout_around_the_work_and_a_message_at_about_the_same_time(
    way: Way, offset: float, scene: Scene, call: type[Call[Any]]
) -> None:
    """Whichever the caller gets: nothing is lost, and nothing hits it afterwards."""

    async def around() -> str:
        with anyio.move_on_after(60) as scope:
            try:
                await way(scene.device, anyio.sleep_forever)
            except CascadeCrash:
                await turns()
                return "crash"
        assert scope.cancelled_caught
        await turns()
        return "timeout"

    async with anyio.create_task_group() as tg:
        tg.start_soon(at, 60 + offset, scene.stop)
        tg.start_soon(working := call(around))

    [fault] = scene.heard()
    if offset:
        assert working.value == ("timeout" if offset > 0 else "crash")
        assert fault == (Cancelled() if offset > 0 else scene.cascaded)
    else:
        assert working.value in ("timeout", "crash")
        assert fault in (Cancelled(), scene.cascaded)


@virtual_asyncio
@way
@pytest.mark.parametrize("offset", [-0.5, 0, 0.5])
async def test_a_timeout_of_asyncio_around_the_work_and_a_message_at_about_the_same_time(
    way: Way, offset: float, scene: Scene, call: type[Call[Any]]
) -> None:
    async def around() -> str:
        try:
            async with asyncio.timeout(60):
                await way(scene.device, anyio.sleep_forever)
        except (CascadeCrash, TimeoutError) as error:
            await turns()
            return type(error).__name__
        pytest.fail("the work came to an end")

    async with anyio.create_task_group() as tg:
        tg.start_soon(at, 60 + offset, scene.stop)
        tg.start_soon(working := call(around))

    [fault] = scene.heard()
    if offset:
        assert working.value == ("TimeoutError" if offset > 0 else "CascadeCrash")
        assert fault == (Cancelled() if offset > 0 else scene.cascaded)
    else:
        assert working.value in ("TimeoutError", "CascadeCrash")
        assert fault in (Cancelled(), scene.cascaded)


@virtual
@way
async def test_a_timeout_around_the_work_ends_its_cleanup_too(
    way: Way, scene: Scene, call: type[Call[Any]]
) -> None:
    """The work is stopped by a message; its cleanup takes longer than the caller waits."""

    async def work() -> None:
        try:
            await anyio.sleep_forever()
        except asyncio.CancelledError:
            await anyio.sleep_forever()

    async def around() -> str:
        with anyio.move_on_after(60):
            try:
                await way(scene.device, work)
            except CascadeCrash:
                return "crash"  # on trio, where a cancellation lasts
        return "timeout"

    async with anyio.create_task_group() as tg:
        tg.start_soon(working := call(around))
        await turns()
        scene.stop()

    assert working.value in ("timeout", "crash")
    assert scene.heard() == [scene.cascaded]


# -- task groups ----------------------------------------------------------------------


async def anyio_group(*children: Fn) -> None:
    async with anyio.create_task_group() as tg:
        for child in children:
            tg.start_soon(child)


async def asyncio_group(*children: Any) -> None:
    task = asyncio.current_task()
    assert task is not None
    requests = task.cancelling()
    try:
        async with asyncio.TaskGroup() as group:
            for child in children:
                group.create_task(child())
    except BaseExceptionGroup:
        # Up to Python 3.12 a group that fails leaves its own request to cancel behind.
        if sys.version_info < (3, 13) and task.cancelling() > requests:
            task.uncancel()
        raise


async def asyncio_gather(*children: Fn) -> None:
    await asyncio.gather(*(child() for child in children))


async def trio_nursery(*children: Fn) -> None:
    async with trio.open_nursery() as nursery:
        for child in children:
            nursery.start_soon(child)


Group = Callable[..., Awaitable[None]]
GROUPS: list[tuple[str, Group]] = [
    ("asyncio", anyio_group),
    ("uvloop", anyio_group),
    ("trio", anyio_group),
    ("asyncio", asyncio_group),
    ("uvloop", asyncio_group),
    ("asyncio", asyncio_gather),
    ("trio", trio_nursery),
]
groups = pytest.mark.parametrize(("anyio_backend", "group"), GROUPS, indirect=["anyio_backend"])
real_groups = pytest.mark.parametrize(
    ("anyio_backend", "group"),
    [pair for pair in GROUPS if pair[1] is not asyncio_gather],
    indirect=["anyio_backend"],
)


@groups
@way
async def test_a_message_ends_the_children_of_the_work_before_anybody_hears(
    group: Group, way: Way, scene: Scene, call: type[Call[None]]
) -> None:
    diary: list[object] = []

    async def child() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            await shielded_turns()
            diary.append(scene.heard())

    async def work() -> None:
        await group(child, child)

    async with anyio.create_task_group() as tg:
        tg.start_soon(working := call(way, scene.device, work))
        await turns()
        scene.stop()

    assert isinstance(working.error, CascadeCrash)
    assert diary == [[], []]
    assert scene.heard() == [scene.cascaded]


@real_groups
@way
async def test_a_child_may_bring_the_end_of_the_work_about(
    group: Group, way: Way, scene: Scene, call: type[Call[None]]
) -> None:
    async def child() -> None:
        await turns(3)
        scene.stop()

    async def work() -> None:
        await group(child, anyio.sleep_forever)

    async with anyio.create_task_group() as tg:
        tg.start_soon(working := call(way, scene.device, work))

    assert isinstance(working.error, CascadeCrash)
    assert scene.heard() == [scene.cascaded]


@real_groups
@way
async def test_a_failing_child_is_the_fault_of_the_work(
    group: Group, way: Way, scene: Scene, call: type[Call[None]]
) -> None:
    error = ValueError("child")

    async def child() -> None:
        await turns(3)
        raise error

    async def work() -> None:
        await group(child, anyio.sleep_forever)

    async with anyio.create_task_group() as tg:
        tg.start_soon(working := call(way, scene.device, work))

    assert isinstance(working.error, ExceptionGroup)
    assert working.error.exceptions == (error,)
    assert scene.heard() == [Failed(working.error)]


@real_groups
@way
@pytest.mark.parametrize("first", ["message", "failure"])
async def test_a_child_that_fails_in_the_turn_of_a_message_is_in_the_context_of_the_crash(
    group: Group, way: Way, first: str, scene: Scene, call: type[Call[None]]
) -> None:
    error = ValueError("child")
    release = anyio.Event()

    async def child() -> None:
        await release.wait()
        raise error

    async def work() -> None:
        await group(child, anyio.sleep_forever)

    async with anyio.create_task_group() as tg:
        tg.start_soon(working := call(way, scene.device, work))
        await turns()
        if first == "failure":
            release.set()
        scene.stop()
        if first == "message":
            release.set()

    assert isinstance(working.error, CascadeCrash)
    assert scene.heard() == [scene.cascaded]
    await turns()


@real_groups
@way
async def test_a_child_that_fails_in_its_cleanup_is_in_the_context_of_the_crash(
    group: Group, way: Way, scene: Scene, call: type[Call[None]]
) -> None:
    async def child() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            await shielded_turns()
            raise OSError("cannot close")

    async def work() -> None:
        await group(child, anyio.sleep_forever)

    async with anyio.create_task_group() as tg:
        tg.start_soon(working := call(way, scene.device, work))
        await turns()
        scene.stop()

    assert isinstance(working.error, CascadeCrash)
    context = working.error.__context__
    assert isinstance(context, BaseExceptionGroup)
    assert "cannot close" in [str(error) for error in context.exceptions]
    assert scene.heard() == [scene.cascaded]


@real_groups
@way
async def test_work_in_a_group_that_fails_is_cancelled(
    group: Group, way: Way, scene: Scene, call: type[Call[None]]
) -> None:
    async def worker() -> None:
        await way(scene.device, anyio.sleep_forever)

    async def fail() -> None:
        await turns(3)
        raise ValueError("sibling")

    async with anyio.create_task_group() as tg:
        tg.start_soon(working := call(group, worker, fail))

    assert isinstance(working.error, ExceptionGroup)
    assert [str(error) for error in working.error.exceptions] == ["sibling"]
    assert scene.heard() == [Cancelled()]


@real_groups
@way
async def test_a_crash_in_a_group_ends_the_group(
    group: Group, way: Way, scene: Scene, call: type[Call[None]]
) -> None:
    async def worker() -> None:
        await way(scene.device, anyio.sleep_forever)

    async with anyio.create_task_group() as tg:
        tg.start_soon(working := call(group, worker, anyio.sleep_forever))
        await turns()
        scene.device.line().shutdown()

    assert isinstance(working.error, ExceptionGroup)
    assert [type(error) for error in working.error.exceptions] == [PowerOffCrash]
    assert scene.heard() == [None]


@only_asyncio
@way
@pytest.mark.skipif(
    sys.version_info < (3, 13),
    reason="a TaskGroup that has failed leaves its own request to cancel behind, "
    "which misleads asyncio.timeout in the same way",
)
async def test_work_that_has_survived_a_failing_group_can_still_be_stopped(
    way: Way, scene: Scene, call: type[Call[None]]
) -> None:
    async def fail() -> None:
        raise ValueError("child")

    async def work() -> None:
        with pytest.raises(ExceptionGroup):
            async with asyncio.TaskGroup() as group:
                group.create_task(fail())
        await anyio.sleep_forever()

    async with anyio.create_task_group() as tg:
        tg.start_soon(working := call(way, scene.device, work))
        await turns()
        scene.stop()

    assert isinstance(working.error, CascadeCrash)
    assert scene.heard() == [scene.cascaded]


@way
async def test_devices_of_a_chain_end_one_after_the_other(way: Way, call: type[Call[None]]) -> None:
    """Each one hears of the next; cleanup takes time; the news go up step by step."""
    devices = [Device(str(number)) for number in range(5)]
    for upper, lower in itertools.pairwise(devices):
        upper.link(lower, MONITOR)
    order = []

    def worker(device: Device) -> Fn:
        async def work() -> None:
            try:
                await anyio.sleep_forever()
            finally:
                await shielded_turns()
                order.append(device.name)

        async def worker() -> None:
            with pytest.raises(Crash):
                await way(device, work)

        return worker

    async with anyio.create_task_group() as tg:
        for device in devices:
            tg.start_soon(worker(device))
        await turns()
        devices[-1].line().shutdown()
        await turns(20)
        assert order == ["4"]  # that was no fault
        devices[-2].disconnect(Killed())
        devices[-2].line().shutdown()
        await turns(100)
        assert order == ["4", "2", "1", "0"]
        tg.cancel_scope.cancel()
