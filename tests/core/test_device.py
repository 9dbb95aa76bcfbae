"""A Device's life: how it ends, and how it hears."""

from __future__ import annotations

import asyncio
import copy
import gc
import itertools
import pickle
import re
import subprocess
import sys
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Generator
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import pytest
import trio
import trio.testing

from backplane import (
    Cancelled,
    Cascaded,
    Device,
    DeviceDownError,
    DeviceID,
    Disconnected,
    Dropped,
    Failed,
    Fault,
    Killed,
    LinkMode,
    Message,
    NoConnection,
    Shutdown,
)

if TYPE_CHECKING:
    from conftest import Call

pytestmark = pytest.mark.anyio

MONITOR = LinkMode.MONITOR
ENOUGH = 10  # turns of a loop, for whatever is going on to come to a rest


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


def monitor(device: Device) -> Device:
    """A Device that hears when this one ends."""
    listener = Device("monitor")
    listener.link(device, MONITOR)
    return listener


# -- its beginning --------------------------------------------------------------------


def test_a_new_device_is_connected() -> None:
    device = Device("worker")

    assert device.connected
    assert device.name == "worker"
    assert isinstance(device.id, DeviceID)


def test_a_device_need_not_have_a_name() -> None:
    assert Device().name is None


def test_names_need_not_differ() -> None:
    first, second = Device("worker"), Device("worker")

    assert first.id != second.id
    assert first != second


def test_a_device_can_be_made_in_a_thread_without_a_loop() -> None:
    made: list[Device] = []
    thread = threading.Thread(target=lambda: made.append(Device()))
    thread.start()
    thread.join()

    assert made[0].connected


def test_a_repr_shows_the_number_the_name_and_the_state() -> None:
    device, anonymous = Device("worker"), Device()
    anonymous.disconnect()

    assert repr(device) == f"<Device {device.id.serial} 'worker' connected>"
    assert repr(anonymous) == f"<Device {anonymous.id.serial} disconnected>"


def test_a_device_takes_no_other_attribute() -> None:
    device = Device()

    with pytest.raises(AttributeError):
        device.note = "remember the milk"  # type: ignore[attr-defined]
    with pytest.raises(AttributeError):
        device.id = DeviceID(5)  # type: ignore[misc]
    with pytest.raises(AttributeError):
        device.connected = False  # type: ignore[misc]
    assert device.connected


def test_a_subclass_may_add_what_it_needs() -> None:
    class Worker(Device):
        def __init__(self, job: str) -> None:
            super().__init__(f"worker for {job}")
            self.job = job

    worker = Worker("post")
    listener = monitor(worker)
    sender = worker.id

    assert (worker.name, worker.job) == ("worker for post", "post")
    del worker
    assert heard(listener) == [Disconnected(sender, Dropped())]


def test_a_device_that_could_not_be_made_is_forgotten_in_silence() -> None:
    with pytest.raises(TypeError):
        Device("too", "many")  # type: ignore[call-arg]

    gc.collect()  # must not raise in the finalizer


def test_a_subclass_that_fails_before_its_device_is_made_is_forgotten_in_silence() -> None:
    class Broken(Device):
        def __init__(self) -> None:
            raise OSError("no such worker")

    with pytest.raises(OSError, match="no such worker"):
        Broken()

    gc.collect()  # must not raise in the finalizer


@pytest.mark.parametrize("copier", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_device_cannot_be_copied_or_pickled(copier: Callable[[Device], object]) -> None:
    device = Device("worker")
    listener = monitor(device)

    with pytest.raises(TypeError, match=r"<Device \d+ 'worker' connected> cannot be copied or pic"):
        copier(device)

    assert device.connected
    assert heard(listener) == []


def test_devices_are_equal_only_to_themselves() -> None:
    device = Device()

    assert device == device
    assert device != Device()
    assert len({device, device}) == 1


# -- its end --------------------------------------------------------------------------

FAULTS: list[Fault | None] = [
    None,
    Dropped(),
    Failed(ValueError()),
    Cascaded(DeviceID(5), Killed()),
    Cancelled(),
    Killed(),
    NoConnection("node"),
]


@pytest.mark.parametrize("fault", FAULTS, ids=repr)
def test_a_device_ends_with_the_fault_it_is_given(fault: Fault | None) -> None:
    device = Device()
    listener = monitor(device)

    device.disconnect(fault)

    assert not device.connected
    assert heard(listener) == [Disconnected(device.id, fault)]


def test_a_device_ends_well_unless_said_otherwise() -> None:
    device = Device()
    listener = monitor(device)

    device.disconnect()

    assert heard(listener) == [Disconnected(device.id, None)]


@pytest.mark.parametrize("first", [None, Killed()])
@pytest.mark.parametrize("second", [None, Cancelled()])
def test_only_the_first_end_counts(first: Fault | None, second: Fault | None) -> None:
    device = Device()
    sender = device.id
    listener = monitor(device)

    device.disconnect(first)
    device.disconnect(second)
    del device

    assert heard(listener) == [Disconnected(sender, first)]


def test_a_forgotten_device_is_dropped() -> None:
    device = Device()
    sender = device.id
    listener = monitor(device)

    del device

    assert heard(listener) == [Disconnected(sender, Dropped())]


def test_a_link_does_not_keep_a_device_alive() -> None:
    listener, device = Device(), Device()
    listener.link(device)
    there = weakref.ref(device)

    del device

    assert there() is None


@pytest.mark.parametrize(
    "thing",
    [
        ValueError("boom"),
        ValueError,
        Killed,
        "boom",
        False,
        0,
        object(),
        Disconnected(DeviceID(5), None),
    ],
    ids=object.__repr__,
)
def test_a_device_ends_with_nothing_but_a_fault(thing: Any) -> None:
    device = Device()
    listener = monitor(device)

    with pytest.raises(TypeError) as caught:
        device.disconnect(thing)

    assert f"not with a {type(thing).__qualname__}" in str(caught.value)
    assert "Failed(exception)" in str(caught.value)
    assert device.connected
    assert heard(listener) == []


def test_a_bad_fault_is_refused_after_the_end_too() -> None:
    device = Device()
    device.disconnect()

    with pytest.raises(TypeError):
        device.disconnect(ValueError())  # type: ignore[arg-type]


class Nasty(Exception):
    """An exception that defends itself against everything."""

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("do not compare me")

    def __repr__(self) -> str:
        raise RuntimeError("do not show me")


def test_a_nasty_exception_is_told_like_any_other() -> None:
    device, error = Device(), Nasty()
    listener = monitor(device)

    device.disconnect(Failed(error))

    assert heard(listener) == [Disconnected(device.id, Failed(error))]


# -- with -----------------------------------------------------------------------------


def test_leaving_a_with_block_ends_the_device_well() -> None:
    with Device("worker") as device:
        listener = monitor(device)
        assert device.connected

    assert heard(listener) == [Disconnected(device.id, None)]


@pytest.mark.parametrize("error", [ValueError(), KeyboardInterrupt(), SystemExit()], ids=repr)
def test_an_exception_out_of_a_with_block_is_the_fault_and_goes_on(error: BaseException) -> None:
    device = Device()
    listener = monitor(device)

    with pytest.raises(type(error)) as caught, device:
        raise error

    assert caught.value is error
    assert heard(listener) == [Disconnected(device.id, Failed(error))]


def test_a_with_block_does_not_change_an_end_that_came_before() -> None:
    device = Device()
    listener = monitor(device)

    def work() -> None:
        with device:
            device.disconnect(Killed())
            raise ValueError("late")

    with pytest.raises(ValueError, match="late"):
        work()

    assert heard(listener) == [Disconnected(device.id, Killed())]


def test_leaving_a_with_block_by_return_or_break_ends_the_device_well() -> None:
    broken, returned = Device(), Device()
    listener = Device()
    listener.link(broken, MONITOR)
    listener.link(returned, MONITOR)

    def work() -> None:
        for _ in range(2):
            with broken:
                break
        with returned:
            return

    work()

    assert heard(listener) == [Disconnected(broken.id, None), Disconnected(returned.id, None)]


async def test_cancelling_a_with_block_is_the_fault_cancelled(call: type[Call[None]]) -> None:
    device = Device()
    listener = monitor(device)

    async def work() -> None:
        with device:
            await anyio.sleep_forever()

    async with anyio.create_task_group() as tg:
        tg.start_soon(working := call(work))
        await turns()
        assert heard(listener) == []
        working.cancel()

    assert working.cancelled
    assert heard(listener) == [Disconnected(device.id, Cancelled())]


async def test_a_cancel_scope_around_a_with_block_is_the_fault_cancelled() -> None:
    with anyio.CancelScope() as scope, Device() as device:
        listener = monitor(device)
        scope.cancel()
        await anyio.sleep_forever()

    assert heard(listener) == [Disconnected(device.id, Cancelled())]


@pytest.mark.parametrize("anyio_backend", ["trio"], indirect=True)
async def test_a_group_of_nothing_but_cancellations_is_the_fault_cancelled() -> None:
    with trio.CancelScope() as scope, Device() as device:
        listener = monitor(device)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            nursery.start_soon(trio.sleep_forever)
            scope.cancel()

    assert heard(listener) == [Disconnected(device.id, Cancelled())]


def test_an_abandoned_generator_drops_its_device() -> None:
    def work(device: Device) -> Generator[None]:
        with device:
            yield

    device = Device()
    listener = monitor(device)
    generator = work(device)
    next(generator)

    del generator
    gc.collect()

    assert heard(listener) == [Disconnected(device.id, Dropped())]


# -- receiving ------------------------------------------------------------------------


def test_receive_nowait_takes_the_oldest_message() -> None:
    device, boss = Device(), Device()
    device.line().shutdown()
    device.line().shutdown(boss.id)

    assert device.receive_nowait() == Shutdown(None)
    assert device.receive_nowait() == Shutdown(boss.id)


def test_receive_nowait_would_block_when_there_is_nothing() -> None:
    device = Device()

    with pytest.raises(anyio.WouldBlock):
        device.receive_nowait()

    device.line().shutdown()
    device.receive_nowait()
    with pytest.raises(anyio.WouldBlock):
        device.receive_nowait()


def test_receive_nowait_after_the_end_is_an_error() -> None:
    device = Device()
    device.line().shutdown()
    device.disconnect()

    with pytest.raises(DeviceDownError, match="cannot receive") as caught:
        device.receive_nowait()

    assert caught.value.device == device.id


async def test_receive_returns_what_is_there() -> None:
    device = Device()
    device.line().shutdown()

    assert await device.receive() == Shutdown(None)
    assert heard(device) == []


async def test_receive_waits_for_a_message(call: type[Call[Message]]) -> None:
    device, other = Device(), Device()
    device.link(other)

    async with anyio.create_task_group() as tg:
        tg.start_soon(receiving := call(device.receive))
        await turns()
        assert not receiving.over
        other.disconnect(Killed())

    assert receiving.value == Disconnected(other.id, Killed())


async def test_messages_are_received_in_order() -> None:
    device, senders = Device(), [Device() for _ in range(10)]
    for sender in senders:
        device.line().shutdown(sender.id)

    received = [await device.receive() for _ in senders]

    assert received == [Shutdown(sender.id) for sender in senders]


async def test_receive_after_the_end_is_an_error() -> None:
    device = Device()
    device.line().shutdown()
    device.disconnect()

    with pytest.raises(DeviceDownError, match="cannot receive") as caught:
        await device.receive()

    assert caught.value.device == device.id


async def test_the_own_end_wakes_a_receiver(call: type[Call[Message]]) -> None:
    device = Device()

    async with anyio.create_task_group() as tg:
        tg.start_soon(receiving := call(device.receive))
        await turns()
        device.disconnect()

    assert isinstance(receiving.error, DeviceDownError)


async def test_the_own_end_is_heard_though_a_message_came_just_before(
    call: type[Call[Message]],
) -> None:
    device = Device()

    async with anyio.create_task_group() as tg:
        tg.start_soon(receiving := call(device.receive))
        await turns()
        device.line().shutdown()
        device.disconnect()

    assert isinstance(receiving.error, DeviceDownError)


async def test_receive_lets_others_run_though_messages_are_there() -> None:
    device, ran = Device(), []

    async def other() -> None:
        ran.append("other")

    for _ in range(ENOUGH):
        device.line().shutdown()
    async with anyio.create_task_group() as tg:
        tg.start_soon(other)
        for _ in range(ENOUGH):
            await device.receive()
        assert ran == ["other"]


@pytest.mark.parametrize("anyio_backend", ["trio"], indirect=True)
async def test_receive_is_a_checkpoint() -> None:
    device = Device()
    device.line().shutdown()

    with trio.testing.assert_checkpoints():
        await device.receive()


async def test_cancelling_a_receive_loses_nothing(call: type[Call[Message]]) -> None:
    device = Device()

    async with anyio.create_task_group() as tg:
        tg.start_soon(receiving := call(device.receive))
        await turns()
        device.line().shutdown()
        receiving.cancel()

    if receiving.cancelled:
        assert heard(device) == [Shutdown(None)]
    else:  # trio lets a task that has been woken finish its wait
        assert receiving.value == Shutdown(None)
        assert heard(device) == []


async def test_a_message_that_came_after_the_cancellation_is_still_there(
    call: type[Call[Message]],
) -> None:
    device = Device()

    async with anyio.create_task_group() as tg:
        tg.start_soon(receiving := call(device.receive))
        await turns()
        receiving.cancel()
        device.line().shutdown()

    assert receiving.cancelled
    assert heard(device) == [Shutdown(None)]


async def test_a_receive_that_is_cancelled_before_it_begins_loses_nothing() -> None:
    device = Device()
    device.line().shutdown()

    with anyio.CancelScope() as scope:
        scope.cancel()
        await device.receive()
        pytest.fail("not cancelled")

    assert heard(device) == [Shutdown(None)]


async def test_a_receive_that_is_cancelled_at_any_turn_loses_nothing(
    call: type[Call[Message]],
) -> None:
    for sent, cancelled in itertools.product([None, *range(5)], range(6)):
        device = Device()

        async with anyio.create_task_group() as tg:
            tg.start_soon(receiving := call(device.receive))
            for turn in range(6):
                if turn == sent:
                    device.line().shutdown()
                if turn == cancelled and not receiving.over:
                    receiving.cancel()
                await turns(1)
            await receiving.wait()

        got = [] if receiving.cancelled else [receiving.value]
        expected = [] if sent is None else [Shutdown(None)]
        assert got + heard(device) == expected, (sent, cancelled)
        device.line().shutdown()
        assert await device.receive() == Shutdown(None)  # nobody holds the mailbox any longer


@pytest.mark.parametrize("anyio_backend", ["asyncio", "uvloop"], indirect=True)
@pytest.mark.parametrize("messages", [0, 1])
async def test_a_receive_that_is_closed_while_it_waits_loses_nothing(messages: int) -> None:
    device = Device()
    for _ in range(messages):
        device.line().shutdown()
    receiving = device.receive()
    receiving.send(None)  # as a task does, up to its only wait

    receiving.close()

    device.line().shutdown()
    assert len([await device.receive() for _ in range(messages + 1)]) == messages + 1


# -- iterating ------------------------------------------------------------------------


async def collect(messages: AsyncIterator[Message]) -> list[Message]:
    return [message async for message in messages]


async def test_iterating_yields_messages_until_the_own_end(call: type[Call[list[Message]]]) -> None:
    device, first, second = Device(), Device(), Device()
    device.link(first)
    device.link(second)
    first.disconnect()

    async with anyio.create_task_group() as tg:
        tg.start_soon(collecting := call(collect, aiter(device)))
        await turns()
        second.disconnect(Killed())
        await turns()
        assert not collecting.over
        device.disconnect()

    assert collecting.value == [
        Disconnected(first.id, None),
        Disconnected(second.id, Killed()),
    ]


async def test_iterating_over_an_ended_device_ends_at_once() -> None:
    device = Device()
    device.line().shutdown()
    device.disconnect()

    assert await collect(aiter(device)) == []


async def test_a_device_that_is_ended_inside_the_loop_ends_it() -> None:
    device, seen = Device(), []
    device.line().shutdown()
    device.line().shutdown()

    async for message in device:
        seen.append(message)
        device.disconnect()

    assert seen == [Shutdown(None)]


async def test_cancelling_an_iteration_loses_nothing(call: type[Call[list[Message]]]) -> None:
    device = Device()

    async with anyio.create_task_group() as tg:
        tg.start_soon(collecting := call(collect, aiter(device)))
        await turns()
        collecting.cancel()
        device.line().shutdown()

    assert collecting.cancelled
    assert await anext(aiter(device)) == Shutdown(None)


async def test_an_iteration_can_be_left_and_taken_up_again() -> None:
    device, senders = Device(), [Device() for _ in range(4)]
    for sender in senders:
        device.line().shutdown(sender.id)
    seen = []

    for _ in range(2):
        async for message in device:
            seen.append(message)
            if len(seen) % 2 == 0:
                break

    assert seen == [Shutdown(sender.id) for sender in senders]


# -- one at a time --------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["receive", "anext"])
async def test_two_tasks_cannot_receive_at_once(verb: str, call: type[Call[Message]]) -> None:
    device = Device("shared")

    async with anyio.create_task_group() as tg:
        tg.start_soon(receiving := call(device.receive))
        await turns()
        with pytest.raises(anyio.BusyResourceError, match=r"cannot receive.*'shared'"):
            await (device.receive() if verb == "receive" else anext(aiter(device)))
        device.line().shutdown()

    assert receiving.value == Shutdown(None)
    assert heard(device) == []


async def test_a_receiver_does_not_mind_one_that_was_refused(call: type[Call[Message]]) -> None:
    device = Device()

    async with anyio.create_task_group() as tg:
        tg.start_soon(receiving := call(device.receive))
        await turns()
        tg.start_soon(refused := call(device.receive))
        await refused.wait()
        device.line().shutdown()

    assert isinstance(refused.error, anyio.BusyResourceError)
    assert receiving.value == Shutdown(None)


async def test_a_receiver_waits_on_when_another_takes_its_message(
    call: type[Call[Message]],
) -> None:
    device, boss = Device(), Device()

    async with anyio.create_task_group() as tg:
        tg.start_soon(receiving := call(device.receive))
        await turns()
        device.line().shutdown()
        taken = device.receive_nowait()
        await turns()
        assert not receiving.over
        device.line().shutdown(boss.id)

    assert taken == Shutdown(None)
    assert receiving.value == Shutdown(boss.id)


# -- collection at any moment ---------------------------------------------------------


class Holder:
    """What a user's object does: it keeps a Device, and stands in a cycle."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.me = self


def test_a_device_in_a_cycle_is_dropped_when_the_cycle_is_collected() -> None:
    device = Device()
    sender, listener = device.id, monitor(device)
    holder = Holder(device)

    del device, holder
    gc.collect()

    assert heard(listener) == [Disconnected(sender, Dropped())]


def test_devices_that_go_in_one_collection_are_each_told_of() -> None:
    listener = Device()
    devices = [Device() for _ in range(10)]
    for first, second in itertools.pairwise(devices):
        first.link(second)
    for device in devices:
        listener.link(device, MONITOR)
    senders = {device.id for device in devices}
    holders = [Holder(device) for device in devices]
    for holder in holders:
        holder.__dict__["all"] = holders

    del devices, device, first, second, holder, holders
    gc.collect()

    messages = heard(listener)
    assert len(messages) == 10
    assert {m.sender for m in messages if isinstance(m, Disconnected)} == senders


def test_a_listener_may_go_in_the_same_collection() -> None:
    outside, listener, device = Device(), Device(), Device()
    outside.link(listener, MONITOR)
    listener.link(device)
    sender = listener.id
    pair = [Holder(listener), Holder(device)]
    pair[0].__dict__["other"], pair[1].__dict__["other"] = reversed(pair)

    del listener, device, pair
    gc.collect()

    assert heard(outside) == [Disconnected(sender, Dropped())]


def test_the_finalizer_of_a_user_may_use_the_mesh() -> None:
    other, listener = Device(), Device()
    listener.link(other, MONITOR)

    class Owner:
        def __init__(self) -> None:
            self.device = Device()
            self.me = self

        def __del__(self) -> None:
            self.device.link(listener)
            other.disconnect(Killed())
            self.device.disconnect(Cancelled())

    owner = Owner()
    sender = owner.device.id
    del owner
    gc.collect()

    assert heard(listener) == [Disconnected(other.id, Killed()), Disconnected(sender, Cancelled())]


@pytest.fixture
def restless_collector() -> Generator[None]:
    """Collect at nearly every allocation."""
    before = gc.get_threshold()
    gc.set_threshold(1, 1, 1)
    yield
    gc.set_threshold(*before)


@pytest.mark.usefixtures("restless_collector")
def test_collections_at_every_step_disturb_no_link() -> None:
    listener = Device()
    expected = []
    for number in range(50):
        device, cyclic = Device(), Device()
        listener.link(device)
        cyclic.link(listener)
        listener.link(cyclic)
        expected += [device.id, cyclic.id]
        Holder(cyclic)
        del cyclic
        if number % 2:
            device.disconnect(Killed())
        del device
    gc.collect()

    messages = heard(listener)
    assert len(messages) == 100
    assert {m.sender for m in messages if isinstance(m, Disconnected)} == set(expected)


@pytest.mark.usefixtures("restless_collector")
async def test_collections_at_every_step_disturb_no_work(call: type[Call[None]]) -> None:
    boss = Device()

    async def work(device: Device) -> None:
        await device.manage(anyio.sleep_forever)

    async with anyio.create_task_group() as tg:
        for _ in range(20):
            device, other = Device(), Device()
            boss.link(device, MONITOR)
            device.link(other, MONITOR)
            tg.start_soon(call(work, device))
            await turns(2)
            Holder(other)
            del device, other
        gc.collect()

        for _ in range(20):
            message = await boss.receive()
            assert isinstance(message, Disconnected)
            assert isinstance(message.fault, Cascaded)
            assert message.fault.root == Dropped()


async def test_a_drop_in_another_thread_wakes_a_receiver(call: type[Call[Message]]) -> None:
    device, other = Device(), [Device()]
    device.link(other[0])
    sender = other[0].id

    async with anyio.create_task_group() as tg:
        tg.start_soon(receiving := call(device.receive))
        await turns()
        thread = threading.Thread(target=other.clear)
        thread.start()
        thread.join()

    assert receiving.value == Disconnected(sender, Dropped())


LEAKS = {
    "a global": "device = Device()",
    "linked globals": "device, other = Device(), Device(); device.link(other)",
    "with a message": "device = Device(); device.line().shutdown()",
    "a Line": "device = Device(); line = device.line()",
    "in a cycle": "cycle = [Device()]; cycle.append(cycle)",
    "linked in cycles": (
        "a, b = [Device()], [Device()]; a.append(b); b.append(a); a[0].link(b[0]); del a, b"
    ),
    "among the builtins": (
        "import builtins; builtins.device = Device(); builtins.line = device.line()"
    ),
    "in a module of its own": (
        "import sys, types; m = types.ModuleType('m'); m.device = Device(); m.other = Device()\n"
        "m.device.link(m.other); sys.modules['m'] = m"
    ),
    "in the library's modules": (
        "import backplane._plugboard as p, backplane._device as d, backplane._messages as m\n"
        "p.device, d.device, m.device = Device(), Device(), Device()\n"
        "p.device.link(d.device); d.device.link(m.device); m.device.link(p.device)"
    ),
    "in a generator": "def g():\n with Device(): yield\nit = g(); next(it)",
    "in a daemon thread": (
        "import threading, time\n"
        "ready = threading.Event()\n"
        "def run(device=Device()):\n ready.set(); time.sleep(3600)\n"
        "threading.Thread(target=run, daemon=True).start(); ready.wait()"
    ),
    "at exit": "import atexit; atexit.register(lambda device: None, Device())",
    "under asyncio": (
        "import asyncio\n"
        "device, other = Device(), Device(); device.link(other)\n"
        "async def main():\n"
        " asyncio.create_task(device.receive()); await asyncio.sleep(0)\n"
        "asyncio.run(main())"
    ),
    "under trio": (
        "import trio\n"
        "device, other = Device(), Device(); device.link(other)\n"
        "async def main():\n"
        " with trio.move_on_after(0): await device.receive()\n"
        "trio.run(main)"
    ),
}


@pytest.mark.parametrize("leak", LEAKS.values(), ids=LEAKS.keys())
def test_a_device_that_is_leaked_until_the_interpreter_exits_is_silent(leak: str) -> None:
    script = f"from backplane import Device\n{leak}\n"

    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", script],
        capture_output=True,
        check=False,
        timeout=60,
    )

    # asyncio's debug mode notes each step that took long, as on a busy machine.
    errors = re.sub(rb"^Executing .* took .* seconds\n", b"", done.stderr, flags=re.MULTILINE)
    assert (done.returncode, done.stdout, errors) == (0, b"", b"")


def test_a_loop_is_not_needed_to_be_dropped_after_a_wait() -> None:
    """The Device was waited with in a loop that is closed by now."""
    device = Device()
    sender, listener = device.id, monitor(device)

    async def wait_in_vain(device: Device) -> None:
        with anyio.move_on_after(0):
            await device.receive()

    asyncio.run(wait_in_vain(device))
    del device

    assert heard(listener) == [Disconnected(sender, Dropped())]
