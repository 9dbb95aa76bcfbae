"""Scale: long cascades, wide stars, and a Device that outlives a hundred thousand others.

No clock is looked at. Work is counted in turns of the loop, space in bytes.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import sys
import tracemalloc
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import sniffio
import trio

from backplane import (
    CascadeCrash,
    Cascaded,
    Device,
    Disconnected,
    Dropped,
    Fault,
    Killed,
    LinkError,
    LinkMode,
    Message,
    Shutdown,
)

pytestmark = pytest.mark.anyio

MONITOR, NOTIFY, PEER = LinkMode.MONITOR, LinkMode.NOTIFY, LinkMode.PEER


def heard(device: Device) -> list[Message]:
    """All that is in the mailbox, taken out."""
    messages = []
    while True:
        try:
            messages.append(device.receive_nowait())
        except anyio.WouldBlock:
            return messages


@contextmanager
def little_stack(frames: int = 60) -> Generator[None]:
    """Leave so many frames of Python from here on."""
    before = sys.getrecursionlimit()
    depth, frame = 0, sys._getframe()
    while frame.f_back is not None:
        depth, frame = depth + 1, frame.f_back
    sys.setrecursionlimit(depth + frames)
    try:
        yield
    finally:
        sys.setrecursionlimit(before)


# -- cascades -------------------------------------------------------------------------


async def cascade(length: int, fault: Fault, wide: bool = False) -> list[CascadeCrash]:
    """End a Device on which others depend: each on the one before it, or all on it alone.

    Returns:
        The crashes in the order in which they happened.
    """
    crashes: list[CascadeCrash] = []
    over = anyio.Event()

    async def work(device: Device) -> None:
        try:
            await device.manage(anyio.sleep_forever)
        except CascadeCrash as crash:
            crashes.append(crash)
            if len(crashes) == length:
                over.set()

    origin = before = Device("origin")
    async with anyio.create_task_group() as tg:
        for _ in range(length):
            device = Device()
            device.link(origin if wide else before, MONITOR)
            tg.start_soon(work, device)
            before = device
        for _ in range(3):
            await anyio.lowlevel.checkpoint()
        with little_stack():
            origin.disconnect(fault)
            await over.wait()
    return crashes


@pytest.mark.heavy
@pytest.mark.parametrize("anyio_backend", ["asyncio", "uvloop", "trio"], indirect=True)
async def test_a_cascade_through_ten_thousand_devices_needs_no_stack_and_knows_its_root() -> None:
    root = Killed()

    crashes = await cascade(10_000, root)

    assert len(crashes) == 10_000
    assert crashes[0].fault is root
    last = crashes[-1].fault
    assert isinstance(last, Cascaded)
    assert last.root is root
    assert crashes[-1].root is root
    assert len(last.path) == 9_999


@pytest.mark.heavy
@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"], indirect=True)
async def test_ten_thousand_devices_that_depend_on_one_all_end_with_it() -> None:
    crashes = await cascade(10_000, Killed(), wide=True)

    assert [crash.fault for crash in crashes] == [Killed()] * 10_000


def exceptions_behind(error: BaseException | None) -> int:
    """How many exceptions are shown, or kept and not shown, above this one."""
    count = 0
    while error is not None and error.__context__ is not None:
        count, error = count + 1, error.__context__
    return count


async def test_a_crash_does_not_drag_along_the_exceptions_of_those_before_it() -> None:
    """They are other Devices' affairs, and to link them all takes time and space squared."""
    crashes = await cascade(50, Killed())

    assert exceptions_behind(crashes[-1]) == exceptions_behind(crashes[0])


class Turns(trio.abc.Instrument):
    """Counts how often the loop runs something."""

    def __init__(self) -> None:
        self.count = 0

    def before_task_step(self, task: object) -> None:
        self.count += 1


@contextmanager
def counted() -> Generator[Turns]:
    turns = Turns()
    if sniffio.current_async_library() == "trio":
        trio.lowlevel.add_instrument(turns)
        yield turns
        trio.lowlevel.remove_instrument(turns)
    else:
        loop = asyncio.get_running_loop()
        call_soon = loop.call_soon

        def counting(*args: Any, **kwargs: Any) -> Any:
            turns.count += 1
            return call_soon(*args, **kwargs)

        setattr(loop, "call_soon", counting)  # noqa: B010
        yield turns
        delattr(loop, "call_soon")


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"], indirect=True)
@pytest.mark.parametrize("wide", [False, True], ids=["a chain", "a star"])
async def test_the_turns_that_a_cascade_takes_grow_with_its_length(wide: bool) -> None:
    with counted() as few:
        await cascade(250, Killed(), wide)
    with counted() as many:
        await cascade(1000, Killed(), wide)

    assert 0 < many.count <= 4.2 * few.count


# -- many at once ---------------------------------------------------------------------

MANY = 50_000


def test_a_chain_of_fifty_thousand_devices_may_be_dropped_at_once() -> None:
    devices = [Device() for _ in range(MANY)]
    for before, device in itertools.pairwise(devices):
        before.link(device, PEER)
    listener = Device()
    listener.link(devices[-1], MONITOR)
    last = devices[-1].id

    with little_stack():
        del devices, before, device

    assert heard(listener) == [Disconnected(last, Dropped())]


def test_a_star_of_fifty_thousand_devices_may_be_dropped_at_once() -> None:
    hub = [Device("hub")]
    sender = hub[0].id
    devices = [Device() for _ in range(MANY)]
    for device in devices:
        device.link(hub[0], PEER)

    with little_stack():
        hub.clear()

    assert all(heard(device) == [Disconnected(sender, Dropped())] for device in devices)


def test_a_hub_hears_of_fifty_thousand_devices_that_are_dropped_at_once() -> None:
    hub = Device("hub")
    devices = [Device() for _ in range(MANY)]
    for device in devices:
        device.link(hub, PEER)
    senders = {device.id for device in devices}

    with little_stack():
        del devices, device

    messages = heard(hub)
    assert len(messages) == MANY
    assert {m.sender for m in messages if isinstance(m, Disconnected)} == senders


def test_owners_that_own_each_other_may_be_dropped_at_once() -> None:
    class Owner(Device):
        successor: Owner | None = None

    first = last = Owner()
    for _ in range(MANY):
        last.successor = Owner()
        last.link(last.successor, PEER)
        last = last.successor
    listener = Device()
    listener.link(last, MONITOR)
    sender = last.id

    with little_stack():
        del first, last

    assert heard(listener) == [Disconnected(sender, Dropped())]


# -- a long life ----------------------------------------------------------------------


def disconnected(long_lived: Device) -> None:
    device = Device()
    device.link(long_lived, PEER)
    device.disconnect()
    long_lived.receive_nowait()


def dropped(long_lived: Device) -> None:
    Device().link(long_lived, PEER)
    long_lived.receive_nowait()


def only_told(long_lived: Device) -> None:
    """It is to hear nothing; only the short-lived one would."""
    Device().link(long_lived, MONITOR)


def only_telling(long_lived: Device) -> None:
    Device().link(long_lived, NOTIFY)
    long_lived.receive_nowait()


def linked_from_the_other_side(long_lived: Device) -> None:
    device = Device()
    long_lived.line().link(device.line(), PEER)
    del device
    long_lived.receive_nowait()


def unlinked(long_lived: Device) -> None:
    device = Device()
    long_lived.link(device, PEER)
    device.unlink(long_lived, PEER)


def refused(long_lived: Device) -> None:
    device = Device()
    device.disconnect()
    try:
        long_lived.link(device, PEER)
    except LinkError:
        pass


def messaged(long_lived: Device) -> None:
    long_lived.line().send(Shutdown(None))
    long_lived.receive_nowait()


LIVES: list[tuple[Callable[[Device], None], int]] = [
    (disconnected, 100_000),
    (dropped, 100_000),
    (only_told, 100_000),
    (only_telling, 20_000),
    (linked_from_the_other_side, 20_000),
    (unlinked, 20_000),
    (refused, 20_000),
    (messaged, 20_000),
]


@pytest.mark.heavy
@pytest.mark.parametrize(("meet", "times"), LIVES, ids=[meet.__name__ for meet, _ in LIVES])
def test_a_long_lived_device_stays_as_small_as_it_was(
    meet: Callable[[Device], None], times: int
) -> None:
    long_lived = Device()
    for _ in range(100):
        meet(long_lived)

    tracemalloc.start()
    try:
        for _ in range(100):
            meet(long_lived)
        gc.collect()
        early, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        for _ in range(times):
            meet(long_lived)
        late, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert late - early < 2_000
    assert peak - early < 200_000  # nothing piles up meanwhile


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"], indirect=True)
@pytest.mark.parametrize("verb", ["watch", "part_manage"])
async def test_a_device_that_works_for_ever_stays_as_small_as_it_was(verb: str) -> None:
    long_lived = Device()

    async def meet() -> None:
        dropped_well = Device()
        long_lived.link(dropped_well, MONITOR)
        dropped_well.disconnect()
        await anyio.lowlevel.checkpoint()

    async def work(times: int) -> None:
        for _ in range(times):
            await getattr(long_lived, verb)(meet)
            heard(long_lived)

    await work(100)
    tracemalloc.start()
    try:
        await work(100)
        gc.collect()
        early, _ = tracemalloc.get_traced_memory()
        await work(2_000)
        gc.collect()
        late, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert late - early < 5_000
