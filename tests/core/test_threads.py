"""Real threads, as many switches as the interpreter can make: nothing lost, doubled or hung.

These sample, on the GIL's turns and on real parallelism where there is no GIL;
``test_interleavings`` goes through all schedules of two threads.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import itertools
import queue
import random
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import anyio
import pytest

from backplane import (
    CascadeCrash,
    Device,
    DeviceDownError,
    DeviceID,
    Disconnected,
    Dropped,
    Fault,
    Line,
    LinkError,
    LinkMode,
    Message,
    Messaged,
    NoConnection,
    PowerOffCrash,
    Shutdown,
)

# The table of a Device tells what it would still keep: no public name does.
from backplane._plugboard import Plugboard

pytestmark = pytest.mark.usefixtures("rapid_switching")

T = TypeVar("T")

MONITOR, NOTIFY, PEER = LinkMode.MONITOR, LinkMode.NOTIFY, LinkMode.PEER
MODES = (MONITOR, NOTIFY, PEER)
THREADS = 4
PATIENCE = 120.0  # nobody waits for so long unless something is lost


def at_once(*jobs: Callable[[], T]) -> list[T]:
    """Run each in a thread of its own, all at the same time; return what they return."""
    barrier = threading.Barrier(len(jobs), timeout=PATIENCE)

    def run(job: Callable[[], T]) -> T:
        barrier.wait()
        return job()

    with ThreadPoolExecutor(len(jobs)) as pool:
        futures = [pool.submit(run, job) for job in jobs]
        return [future.result(2 * PATIENCE) for future in futures]


def take_all(device: Device) -> list[Message]:
    messages = []
    with contextlib.suppress(anyio.WouldBlock):
        while True:
            messages.append(device.receive_nowait())
    return messages


# -- a crowd that all threads work on --------------------------------------------------

Pair = tuple[DeviceID, DeviceID]
"""A speaker and who hears it."""


@dataclass
class Crowd:
    """Devices that stay, and Devices that go, whose only references are here."""

    staying: list[Device]
    going: list[Device | None]
    lines: list[Line]


@dataclass
class Deeds:
    """What one thread did."""

    linked: set[Pair] = field(default_factory=set)
    """What it linked: the call has returned."""
    unlinked: set[Pair] = field(default_factory=set)
    causes: set[tuple[DeviceID, Fault | None]] = field(default_factory=set)
    """What it ended, or tried to, and why."""
    sent: set[tuple[DeviceID, Shutdown]] = field(default_factory=set)
    """What it sent to whom and what was taken."""


def act(crowd: Crowd, thread: int, actions: int, chance: random.Random) -> Deeds:
    """Do this and that."""
    deeds = Deeds()
    for number in range(actions):
        one, other = chance.sample(crowd.lines, 2)
        mode = chance.choice(MODES)
        pairs = {MONITOR: {(other.id, one.id)}, NOTIFY: {(one.id, other.id)}}
        place = chance.randrange(len(crowd.going))
        goer = crowd.lines[len(crowd.staying) + place].id
        match chance.choices(["link", "unlink", "send", "end", "drop"], [8, 2, 5, 1, 1])[0]:
            case "link":
                with contextlib.suppress(LinkError):
                    one.link(other, mode)
                    deeds.linked.update(*(pairs[part] for part in pairs if part in mode))
            case "unlink":
                one.unlink(other, mode)
                deeds.unlinked.update(*(pairs[part] for part in pairs if part in mode))
            case "send":
                message = Shutdown(DeviceID(number, thread))
                if one.send(message):
                    deeds.sent.add((one.id, message))
            case "end":
                device = crowd.going[place]
                if device is not None:
                    fault = NoConnection(f"{thread} {number}")
                    deeds.causes.add((goer, fault))
                    device.disconnect(fault)
                    del device
            case _:
                deeds.causes.add((goer, Dropped()))
                crowd.going[place] = None
    return deeds


def mayhem(staying: int, going: int, actions: int, chance: random.Random) -> None:
    """Let all threads act on one crowd, and look at what came of it."""
    devices = [Device() for _ in range(staying + going)]
    crowd = Crowd(devices[:staying], [*devices[staying:]], [it.line() for it in devices])
    boards = [device._board for device in devices]
    devices.clear()

    every = at_once(
        *(
            functools.partial(act, crowd, thread, actions, random.Random(chance.random()))
            for thread in range(THREADS)
        )
    )
    gc.collect()  # without a GIL, what another thread dropped ends when its maker gets to it

    linked = set[Pair]().union(*(deeds.linked for deeds in every))
    unlinked = set[Pair]().union(*(deeds.unlinked for deeds in every))
    causes = set[tuple[DeviceID, Fault | None]]().union(*(deeds.causes for deeds in every))
    news = {device.id: take_all(device) for device in crowd.staying}
    for listener, messages in news.items():
        ends = [(it.sender, it.fault) for it in messages if isinstance(it, Disconnected)]
        heard = [sender for sender, _ in ends]
        assert len(heard) == len(set(heard)), "each link fires once"
        assert {(sender, listener) for sender in heard} <= linked, "only a link fires"
        assert set(ends) <= causes, "with a true cause"
        for line in crowd.lines:
            if (line.id, listener) in linked - unlinked:
                assert line.connected or line.id in heard, "each link fires"
        for thread, deeds in enumerate(every):
            sent = [it.sender.serial for to, it in deeds.sent if to == listener and it.sender]
            assert sent_by(thread, messages) == sorted(sent), "all arrives, in order"
    told = {end for messages in news.values() for end in messages if isinstance(end, Disconnected)}
    assert len(told) == len({end.sender for end in told}), "all hear the same cause"

    for device in (*crowd.staying, *crowd.going):
        if device is not None:
            device.disconnect()
    for board in boards:
        assert not any(isinstance(key, Plugboard) for key in board)
        assert not any(isinstance(value, Plugboard) for value in board.values())
        assert not board.inbox


def sent_by(thread: int, messages: list[Message]) -> list[int]:
    """The numbers of the messages that one thread sent, as they came."""
    senders = [it.sender for it in messages if isinstance(it, Shutdown)]
    return [sender.serial for sender in senders if sender is not None and sender.realm == thread]


@pytest.mark.parametrize("seed", range(25))
def test_a_crowd_in_the_hands_of_many_threads_keeps_every_promise(seed: int) -> None:
    mayhem(staying=3, going=5, actions=80, chance=random.Random(seed))


@pytest.mark.parametrize("seed", range(3))
def test_a_pair_in_the_hands_of_many_threads_keeps_every_promise(seed: int) -> None:
    chance = random.Random(seed)

    for _ in range(60):
        mayhem(staying=1, going=1, actions=8, chance=chance)


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_a_long_lived_device_is_as_small_after_many_short_ones_in_many_threads(
    mode: LinkMode,
) -> None:
    host = Device()
    before = len(host._board)

    def come_and_go() -> int:
        for number in range(200):
            guest = Device()
            host.link(guest, mode)
            if number % 2:
                guest.disconnect()
            del guest
        return 200

    guests = sum(at_once(*[come_and_go] * THREADS))
    gc.collect()

    heard = take_all(host)
    assert len(heard) == len({it.sender for it in heard}) == (guests if MONITOR in mode else 0)
    assert len(host._board) - before <= 1  # the mailbox


# -- one who waits, and others who wake him from elsewhere -----------------------------

LOOPS = ["asyncio", "uvloop", "trio"]


@pytest.fixture(params=itertools.combinations(LOOPS, 2), ids="-".join)
def loops(request: pytest.FixtureRequest) -> tuple[str, str]:
    """Two loops, each in a thread of its own."""
    pair: tuple[str, str] = request.param
    if "uvloop" in pair:
        pytest.importorskip("uvloop")
    return pair


def in_loop(loop: str, fn: Callable[[], Awaitable[T]]) -> T:
    """Run an async function in a new loop, in the calling thread, and not for ever."""

    async def main() -> T:
        with anyio.fail_after(PATIENCE):
            return await fn()

    options = {"use_uvloop": True} if loop == "uvloop" else {}
    return anyio.run(main, backend="trio" if loop == "trio" else "asyncio", backend_options=options)


def test_who_waits_in_two_loops_gets_all_that_foreign_threads_say(loops: tuple[str, str]) -> None:
    count = 300
    receivers = [Device(), Device()]

    def speak(thread: int) -> list[Message]:
        speaker = Device()
        for receiver in receivers:
            speaker.link(receiver, NOTIFY)
        for number in range(count):
            for receiver in receivers:
                assert receiver.line().shutdown(DeviceID(number, thread))
        speaker.disconnect(NoConnection(str(thread)))
        return []

    async def listen(receiver: Device) -> list[Message]:
        return [await receiver.receive() for _ in range(THREADS * (count + 1))]

    heard = at_once(
        *(
            functools.partial(in_loop, loop, functools.partial(listen, receiver))
            for loop, receiver in zip(loops, receivers, strict=True)
        ),
        *(functools.partial(speak, thread) for thread in range(THREADS)),
    )

    for messages in heard[:2]:
        ends = {it.fault for it in messages if isinstance(it, Disconnected)}
        assert ends == {NoConnection(str(thread)) for thread in range(THREADS)}
        for thread in range(THREADS):
            assert sent_by(thread, messages) == list(range(count))


def wake_by_shutdown(line: Line) -> None:
    assert line.shutdown()


def wake_by_end(line: Line) -> None:
    with Device() as speaker:
        speaker.link(line, NOTIFY)


def wake_by_drop(line: Line) -> None:
    Device().link(line, NOTIFY)


WAKES = [wake_by_shutdown, wake_by_end, wake_by_drop]


@pytest.mark.parametrize("wake", WAKES)
def test_no_wake_is_lost_however_close_it_comes(
    wake: Callable[[Line], None], loops: tuple[str, str]
) -> None:
    """One message at a time, the next when it has come: a lost wake would be a hang."""
    rounds = 300
    receivers = [Device(), Device()]
    replies: list[queue.SimpleQueue[Message]] = [queue.SimpleQueue(), queue.SimpleQueue()]

    def speak(number: int) -> None:
        for _ in range(rounds):
            wake(receivers[number].line())
            replies[number].get(timeout=PATIENCE)

    async def listen(number: int) -> None:
        for _ in range(rounds):
            replies[number].put(await receivers[number].receive())

    at_once(
        *(
            functools.partial(in_loop, loop, functools.partial(listen, number))
            for number, loop in enumerate(loops)
        ),
        functools.partial(speak, 0),
        functools.partial(speak, 1),
    )

    for receiver in receivers:
        assert take_all(receiver) == []


def test_what_comes_while_a_receive_is_cancelled_is_not_lost(loops: tuple[str, str]) -> None:
    count = 200
    receivers = [Device(), Device()]

    def speak(receiver: Device) -> list[Message]:
        for number in range(count):
            assert receiver.line().shutdown(DeviceID(number, 0))
        return []

    async def listen(receiver: Device) -> list[Message]:
        got: list[Message] = []
        for patience in itertools.cycle([0, 1e-6, 1e-5, 1e-4]):
            with anyio.move_on_after(patience):
                got.append(await receiver.receive())
            if len(got) == count:
                break
        return got

    heard = at_once(
        *(
            functools.partial(in_loop, loop, functools.partial(listen, receiver))
            for loop, receiver in zip(loops, receivers, strict=True)
        ),
        *(functools.partial(speak, receiver) for receiver in receivers),
    )

    for messages in heard[:2]:
        assert sent_by(0, messages) == list(range(count))


def test_an_end_in_a_foreign_thread_ends_every_wait(loops: tuple[str, str]) -> None:
    waiting: queue.SimpleQueue[Device | None] = queue.SimpleQueue()

    def end_all() -> None:
        for _ in loops:
            while (device := waiting.get(timeout=PATIENCE)) is not None:
                device.disconnect()

    async def wait() -> None:
        for number in range(60):
            device = Device()
            waiting.put(device)
            if number % 2:
                with pytest.raises(DeviceDownError):
                    await device.receive()
            else:
                assert [it async for it in device] == []
        waiting.put(None)

    at_once(*(functools.partial(in_loop, loop, wait) for loop in loops), end_all)


def test_work_is_stopped_from_a_foreign_thread_whenever_it_starts(loops: tuple[str, str]) -> None:
    working: queue.SimpleQueue[Line | None] = queue.SimpleQueue()

    def stop_all() -> None:
        for _ in loops:
            while (line := working.get(timeout=PATIENCE)) is not None:
                line.shutdown()

    async def work() -> None:
        for number in range(60):
            device = Device()
            working.put(device.line())
            if number % 2:
                with pytest.raises(PowerOffCrash):
                    await device.manage(anyio.sleep_forever)
            else:
                assert await device.watch(anyio.sleep_forever) == Messaged(Shutdown(None))
        working.put(None)

    at_once(*(functools.partial(in_loop, loop, work) for loop in loops), stop_all)


def test_two_that_work_in_different_loops_end_with_each_other(loops: tuple[str, str]) -> None:
    meeting = threading.Barrier(2, timeout=PATIENCE)
    fault = NoConnection("first")
    pairs = [(Device(), Device()) for _ in range(40)]
    for one, other in pairs:
        one.link(other)

    async def first() -> None:
        for device, _ in pairs:
            meeting.wait()
            device.disconnect(fault)

    async def second() -> None:
        for device, other in pairs:
            meeting.wait()
            with pytest.raises(CascadeCrash) as caught:
                await other.manage(anyio.sleep_forever)
            assert (caught.value.sender, caught.value.fault) == (device.id, fault)

    at_once(
        functools.partial(in_loop, loops[0], first), functools.partial(in_loop, loops[1], second)
    )


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
def test_a_device_that_only_its_managed_work_holds_ends_as_the_work_does(loop: str) -> None:
    """The last reference goes when the work is over: that must not come before its end."""
    ear = Device()

    async def work() -> None:
        worker = Device()
        ear.link(worker, MONITOR)
        managed = worker.managed()
        del worker
        async with managed:
            pass

    in_loop(loop, work)

    assert [it.fault for it in take_all(ear) if isinstance(it, Disconnected)] == [None]
