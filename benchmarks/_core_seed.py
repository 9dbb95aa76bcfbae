"""The seed's own 17 benchmarks, under its own names, and what Python offers instead.

"drop" ends a Device by dropping the last reference, "error" by
``disconnect(Failed(exc))``; "notify" takes the message out with
``receive_nowait``. Each operation makes its own two Devices (or whatever it
uses instead) and lets go of them.
"""

from __future__ import annotations

import asyncio
import weakref
from collections import deque

import anyio
import trio
from _harness import Case

from backplane import Device, Failed, LinkMode

BOOM = RuntimeError("boom")


class Plain:
    """An object as users make them, to be dropped."""

    __slots__ = ("__weakref__",)


def case(name: str, what: str) -> Case:
    made = Case(name, what)
    CASES.append(made)
    return made


CASES: list[Case] = []

create_destroy = case("device.create_destroy", "make a Device, drop it")
device_monitor_drop = case(
    "device.device_monitor_drop", "two Devices, device.link(device, MONITOR), drop the other"
)
device_monitor_drop_notify = case(
    "device.device_monitor_drop_notify", "the same, and take the message out"
)
device_monitor_error_notify = case(
    "device.device_monitor_error_notify", "the same, the other ends by disconnect(Failed(exc))"
)
device_peer_drop_notify = case("device.device_peer_drop_notify", "as drop_notify, linked PEER")
device_peer_error_notify = case("device.device_peer_error_notify", "as error_notify, linked PEER")
line_monitor_drop = case(
    "device.line_monitor_drop", "two Devices, device.link(line, MONITOR), drop the other"
)
line_monitor_drop_notify = case(
    "device.line_monitor_drop_notify", "the same, and take the message out"
)
line_monitor_error_notify = case(
    "device.line_monitor_error_notify", "the same, the other ends by disconnect(Failed(exc))"
)
line_peer_drop_notify = case("device.line_peer_drop_notify", "as drop_notify, linked PEER")
line_peer_error_notify = case("device.line_peer_error_notify", "as error_notify, linked PEER")
line_create_destroy = case("line.create_destroy", "make a Line of a Device, drop it")
lines_monitor_drop = case(
    "line.line_monitor_drop", "two Devices, line.link(line, MONITOR), drop the other"
)
lines_monitor_drop_notify = case(
    "line.line_monitor_drop_notify", "the same, and take the message out"
)
lines_monitor_error_notify = case(
    "line.line_monitor_error_notify", "the same, the other ends by disconnect(Failed(exc))"
)
lines_peer_drop_notify = case("line.line_peer_drop_notify", "as drop_notify, linked PEER")
lines_peer_error_notify = case("line.line_peer_error_notify", "as error_notify, linked PEER")


# -- ours --------------------------------------------------------------------------


@create_destroy.by("backplane")
def make_device(n: int) -> None:
    for _ in range(n):
        Device()


@device_monitor_drop.by("backplane")
def device_monitor_drop_(n: int) -> None:
    for _ in range(n):
        boss = Device()
        worker = Device()
        boss.link(worker, LinkMode.MONITOR)
        del worker


@device_monitor_drop_notify.by("backplane")
def device_monitor_drop_notify_(n: int) -> None:
    for _ in range(n):
        boss = Device()
        worker = Device()
        boss.link(worker, LinkMode.MONITOR)
        del worker
        boss.receive_nowait()


@device_monitor_error_notify.by("backplane")
def device_monitor_error_notify_(n: int) -> None:
    for _ in range(n):
        boss = Device()
        worker = Device()
        boss.link(worker, LinkMode.MONITOR)
        worker.disconnect(Failed(BOOM))
        boss.receive_nowait()


@device_peer_drop_notify.by("backplane")
def device_peer_drop_notify_(n: int) -> None:
    for _ in range(n):
        boss = Device()
        worker = Device()
        boss.link(worker, LinkMode.PEER)
        del worker
        boss.receive_nowait()


@device_peer_error_notify.by("backplane")
def device_peer_error_notify_(n: int) -> None:
    for _ in range(n):
        boss = Device()
        worker = Device()
        boss.link(worker, LinkMode.PEER)
        worker.disconnect(Failed(BOOM))
        boss.receive_nowait()


@line_monitor_drop.by("backplane")
def line_monitor_drop_(n: int) -> None:
    for _ in range(n):
        boss = Device()
        worker = Device()
        boss.link(worker.line(), LinkMode.MONITOR)
        del worker


@line_monitor_drop_notify.by("backplane")
def line_monitor_drop_notify_(n: int) -> None:
    for _ in range(n):
        boss = Device()
        worker = Device()
        boss.link(worker.line(), LinkMode.MONITOR)
        del worker
        boss.receive_nowait()


@line_monitor_error_notify.by("backplane")
def line_monitor_error_notify_(n: int) -> None:
    for _ in range(n):
        boss = Device()
        worker = Device()
        boss.link(worker.line(), LinkMode.MONITOR)
        worker.disconnect(Failed(BOOM))
        boss.receive_nowait()


@line_peer_drop_notify.by("backplane")
def line_peer_drop_notify_(n: int) -> None:
    for _ in range(n):
        boss = Device()
        worker = Device()
        boss.link(worker.line(), LinkMode.PEER)
        del worker
        boss.receive_nowait()


@line_peer_error_notify.by("backplane")
def line_peer_error_notify_(n: int) -> None:
    for _ in range(n):
        boss = Device()
        worker = Device()
        boss.link(worker.line(), LinkMode.PEER)
        worker.disconnect(Failed(BOOM))
        boss.receive_nowait()


@line_create_destroy.by("backplane")
def make_line(n: int) -> None:
    device = Device()
    for _ in range(n):
        device.line()


@lines_monitor_drop.by("backplane")
def lines_monitor_drop_(n: int) -> None:
    for _ in range(n):
        boss = Device()
        worker = Device()
        boss.line().link(worker.line(), LinkMode.MONITOR)
        del worker


@lines_monitor_drop_notify.by("backplane")
def lines_monitor_drop_notify_(n: int) -> None:
    for _ in range(n):
        boss = Device()
        worker = Device()
        boss.line().link(worker.line(), LinkMode.MONITOR)
        del worker
        boss.receive_nowait()


@lines_monitor_error_notify.by("backplane")
def lines_monitor_error_notify_(n: int) -> None:
    for _ in range(n):
        boss = Device()
        worker = Device()
        boss.line().link(worker.line(), LinkMode.MONITOR)
        worker.disconnect(Failed(BOOM))
        boss.receive_nowait()


@lines_peer_drop_notify.by("backplane")
def lines_peer_drop_notify_(n: int) -> None:
    for _ in range(n):
        boss = Device()
        worker = Device()
        boss.line().link(worker.line(), LinkMode.PEER)
        del worker
        boss.receive_nowait()


@lines_peer_error_notify.by("backplane")
def lines_peer_error_notify_(n: int) -> None:
    for _ in range(n):
        boss = Device()
        worker = Device()
        boss.line().link(worker.line(), LinkMode.PEER)
        worker.disconnect(Failed(BOOM))
        boss.receive_nowait()


# -- instead of a Device or a Line -------------------------------------------------


@create_destroy.by("plain object with __slots__")
def make_plain(n: int) -> None:
    for _ in range(n):
        Plain()


@create_destroy.by("asyncio.Future", on="asyncio")
def make_future(n: int) -> None:
    loop = asyncio.get_running_loop()
    for _ in range(n):
        loop.create_future()


@create_destroy.by("asyncio.Event", on="asyncio")
def make_event(n: int) -> None:
    for _ in range(n):
        asyncio.Event()


@create_destroy.by("anyio.Event")
def make_anyio_event(n: int) -> None:
    for _ in range(n):
        anyio.Event()


@create_destroy.by("anyio memory object stream")
def make_anyio_stream(n: int) -> None:
    for _ in range(n):
        sending, receiving = anyio.create_memory_object_stream[None](1)
        sending.close()
        receiving.close()  # without this it warns


@create_destroy.by("trio.Event", on="trio")
def make_trio_event(n: int) -> None:
    for _ in range(n):
        trio.Event()


@create_destroy.by("trio memory channel", on="trio")
def make_trio_channel(n: int) -> None:
    for _ in range(n):
        trio.open_memory_channel[None](1)


@line_create_destroy.by("weakref.ref (not the cached one)")
def make_weakref(n: int) -> None:
    thing = Plain()
    for _ in range(n):
        weakref.ref(thing, id)


# -- instead of being told that something was dropped -------------------------------


def finalizer(n: int) -> None:
    for _ in range(n):
        inbox: deque[str] = deque()
        worker = Plain()
        weakref.finalize(worker, inbox.append, "gone")
        del worker


def finalizer_notify(n: int) -> None:
    for _ in range(n):
        inbox: deque[str] = deque()
        worker = Plain()
        weakref.finalize(worker, inbox.append, "gone")
        del worker
        inbox.popleft()


def anyio_close(n: int) -> None:
    for _ in range(n):
        sending, receiving = anyio.create_memory_object_stream[None](1)
        sending.close()
        receiving.close()


def anyio_close_notify(n: int) -> None:
    for _ in range(n):
        sending, receiving = anyio.create_memory_object_stream[None](1)
        sending.close()
        try:
            receiving.receive_nowait()
        except anyio.EndOfStream:
            pass
        receiving.close()


def trio_close_notify(n: int) -> None:
    for _ in range(n):
        sending, receiving = trio.open_memory_channel[None](1)
        sending.close()
        try:
            receiving.receive_nowait()
        except trio.EndOfChannel:
            pass


for dropped in (device_monitor_drop, line_monitor_drop, lines_monitor_drop):
    dropped.by("weakref.finalize to a deque")(finalizer)
    dropped.by("anyio memory object stream, closed")(anyio_close)

for dropped in (
    device_monitor_drop_notify,
    device_peer_drop_notify,
    line_monitor_drop_notify,
    line_peer_drop_notify,
    lines_monitor_drop_notify,
    lines_peer_drop_notify,
):
    dropped.by("weakref.finalize to a deque")(finalizer_notify)
    dropped.by("anyio memory object stream, closed")(anyio_close_notify)
    dropped.by("trio memory channel, closed", on="trio")(trio_close_notify)


# -- instead of being told of an error -----------------------------------------------


def future_error(n: int) -> None:
    loop = asyncio.get_running_loop()
    for _ in range(n):
        future = loop.create_future()
        future.set_exception(BOOM)
        future.exception()


def queue_error(n: int) -> None:
    for _ in range(n):
        queue: asyncio.Queue[Exception] = asyncio.Queue()
        queue.put_nowait(BOOM)
        queue.get_nowait()


def anyio_error(n: int) -> None:
    for _ in range(n):
        sending, receiving = anyio.create_memory_object_stream[Exception](1)
        sending.send_nowait(BOOM)
        receiving.receive_nowait()
        sending.close()
        receiving.close()


def trio_error(n: int) -> None:
    for _ in range(n):
        sending, receiving = trio.open_memory_channel[Exception](1)
        sending.send_nowait(BOOM)
        receiving.receive_nowait()


for failed in (
    device_monitor_error_notify,
    device_peer_error_notify,
    line_monitor_error_notify,
    line_peer_error_notify,
    lines_monitor_error_notify,
    lines_peer_error_notify,
):
    failed.by("asyncio.Future, set_exception", on="asyncio")(future_error)
    failed.by("asyncio.Queue, put and get", on="asyncio")(queue_error)
    failed.by("anyio memory object stream, send and receive")(anyio_error)
    failed.by("trio memory channel, send and receive", on="trio")(trio_error)
