"""Waking and cancelling across loops, libraries and threads, and when the loop is gone."""

from __future__ import annotations

import asyncio
import gc
import selectors
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
import sniffio
import trio
from trio._core._run import GLOBAL_RUN_CONTEXT

from backplane import (
    CascadeCrash,
    Cascaded,
    Device,
    DeviceDownError,
    Disconnected,
    Dropped,
    Failed,
    Fault,
    Killed,
    LinkMode,
    Message,
    Messaged,
    Shutdown,
)
from backplane._loop import Parking, Scope, checkpoint, is_cancellation, new_parking, new_scope

if TYPE_CHECKING:
    from conftest import Call

T = TypeVar("T")
Fn = Callable[[], Awaitable[Any]]

MONITOR = LinkMode.MONITOR
ENOUGH = 10  # turns of a loop, for whatever is going on to come to a rest
PATIENCE = 30.0  # seconds, after which something hangs

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


def run_asyncio(fn: Callable[[], Awaitable[T]]) -> T:
    async def main() -> T:
        return await fn()

    # In debug mode the loop refuses calls that are not meant for foreign threads.
    with asyncio.Runner(debug=True) as runner:
        return runner.run(main())


def run_uvloop(fn: Callable[[], Awaitable[T]]) -> T:
    uvloop = pytest.importorskip("uvloop")

    async def main() -> T:
        return await fn()

    with asyncio.Runner(debug=True, loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main())


def run_trio(fn: Callable[[], Awaitable[T]]) -> T:
    return trio.run(fn)


RUNS: dict[str, Callable[[Fn], Any]] = {
    "asyncio": run_asyncio,
    "uvloop": run_uvloop,
    "trio": run_trio,
}


@pytest.fixture
def threads() -> Generator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


# -- waking in the same loop ----------------------------------------------------------


@pytest.mark.anyio
async def test_a_parked_task_sleeps_until_it_is_woken(call: type[Call[None]]) -> None:
    parked: list[Parking] = []

    async def park() -> None:
        parked.append(new_parking())
        await parked[0].park()

    async with anyio.create_task_group() as tg:
        tg.start_soon(parking := call(park))
        await turns()
        assert not parking.over
        parked[0].wake()


@pytest.mark.anyio
async def test_a_wake_that_comes_early_is_kept() -> None:
    parking = new_parking()

    parking.wake()
    parking.wake()

    with anyio.move_on_after(PATIENCE) as scope:
        await parking.park()
    assert not scope.cancelled_caught


@pytest.mark.anyio
async def test_a_wake_is_good_for_one_sleep(call: type[Call[None]]) -> None:
    woken = []

    async def park() -> None:
        parking = new_parking()
        parking.wake()
        await parking.park()
        woken.append("once")
        await parking.park()

    async with anyio.create_task_group() as tg:
        tg.start_soon(parking := call(park))
        await turns()
        assert woken == ["once"]
        assert not parking.over
        parking.cancel()


@pytest.mark.anyio
@pytest.mark.parametrize("wake", ["wake", "wake_soon"])
async def test_a_task_that_is_woken_often_wakes_once(wake: str, call: type[Call[None]]) -> None:
    parked: list[Parking] = []
    woken = []

    async def park() -> None:
        parked.append(new_parking())
        await parked[0].park()
        woken.append("once")

    async with anyio.create_task_group() as tg:
        tg.start_soon(call(park))
        await turns()
        for _ in range(5):
            getattr(parked[0], wake)()

    for _ in range(5):
        getattr(parked[0], wake)()  # long after: does nothing
    await turns()
    assert woken == ["once"]


@pytest.mark.anyio
async def test_a_wake_after_the_cancellation_of_a_sleep_does_nothing(
    call: type[Call[None]],
) -> None:
    parked: list[Parking] = []

    async def park() -> None:
        parked.append(new_parking())
        await parked[0].park()

    async with anyio.create_task_group() as tg:
        tg.start_soon(parking := call(park))
        await turns()
        parking.cancel()
        parked[0].wake()
        parked[0].wake_soon()

    assert parking.cancelled
    await turns()


@pytest.mark.anyio
async def test_wakes_from_finalizers_are_answered_in_the_loop_and_gathered(
    call: type[Call[None]],
) -> None:
    answers: list[str | None] = []

    async def work() -> None:
        scope = new_scope(lambda: answers.append(sniffio.current_async_library()))
        for _ in range(5):
            scope.wake_soon()
        assert answers == []
        await turns()

    await work()

    assert len(answers) == 1


@pytest.mark.anyio
async def test_a_scope_answers_a_wake_at_once() -> None:
    answers = []
    scope: Scope = new_scope(lambda: answers.append("answer"))

    scope.wake()
    scope.wake()

    assert answers == ["answer", "answer"]


@pytest.mark.anyio
@only_trio
async def test_work_under_trio_leaves_no_cancellation_to_be_met() -> None:
    """A scope of trio's takes its cancellation along, met or not."""
    scope: Scope = new_scope(lambda: None)
    scope.enter()
    scope.cancel()

    assert scope.exit(None) is None
    assert not scope.has_unmet
    assert await scope.meet() is None
    await turns()


@pytest.mark.anyio
async def test_a_checkpoint_lets_others_run() -> None:
    ran = []

    async def other() -> None:
        ran.append("other")

    async with anyio.create_task_group() as tg:
        tg.start_soon(other)
        for _ in range(ENOUGH):
            await checkpoint()
        assert ran == ["other"]


@pytest.mark.anyio
async def test_a_checkpoint_can_be_cancelled() -> None:
    with anyio.CancelScope() as scope:
        scope.cancel()
        await checkpoint()

    assert scope.cancelled_caught


# -- no loop, or another one ----------------------------------------------------------


@pytest.mark.parametrize("verb", ["receive", "watch", "manage"])
def test_waiting_without_a_loop_is_an_error_and_claims_nothing(verb: str) -> None:
    device = Device()

    async def fn() -> None:
        pytest.fail("was called")

    waiting: Any = device.receive() if verb == "receive" else getattr(device, verb)(fn)
    with pytest.raises(sniffio.AsyncLibraryNotFoundError):
        waiting.send(None)

    device.line().shutdown()
    assert run_asyncio(device.receive) == Shutdown(None)


@pytest.mark.parametrize("verb", ["receive", "watch", "manage"])
def test_waiting_under_a_library_that_is_not_supported_is_an_error(verb: str) -> None:
    device = Device()
    before = sniffio.thread_local.name
    sniffio.thread_local.name = "curio"

    waiting: Any = (
        device.receive() if verb == "receive" else getattr(device, verb)(anyio.sleep_forever)
    )
    try:
        with pytest.raises(RuntimeError, match="under asyncio and trio, not under curio"):
            waiting.send(None)
    finally:
        sniffio.thread_local.name = before

    assert device.connected
    assert run_trio_once(device) == Shutdown(None)


def run_trio_once(device: Device) -> Message:
    device.line().shutdown()
    return run_trio(device.receive)


@pytest.mark.parametrize("first", RUNS.values(), ids=RUNS.keys())
@pytest.mark.parametrize("second", RUNS.values(), ids=RUNS.keys())
def test_a_device_may_be_used_in_one_loop_after_the_other(
    first: Callable[[Fn], Any], second: Callable[[Fn], Any]
) -> None:
    device = Device()

    async def wait_in_vain() -> None:
        with anyio.move_on_after(0):
            await device.receive()

    first(wait_in_vain)
    device.line().shutdown()

    assert second(device.receive) == Shutdown(None)


@pytest.mark.parametrize("factory", [asyncio.new_event_loop, None], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("end", ["disconnect", "drop"])
def test_a_waiter_in_a_loop_that_has_been_closed_is_no_error(
    factory: Callable[[], asyncio.AbstractEventLoop] | None, end: str
) -> None:
    if factory is None:
        factory = pytest.importorskip("uvloop").new_event_loop
    device, other, listener = Device(), [Device()], Device()
    sender = other[0].id
    device.link(other[0])
    listener.link(other[0])

    async def leave_a_waiter() -> asyncio.Task[Message]:
        task = asyncio.create_task(device.receive())
        await turns()
        return task

    loop = factory()
    loop.set_exception_handler(lambda *_: None)  # says that the task was left
    task = loop.run_until_complete(leave_a_waiter())
    loop.close()
    if end == "disconnect":
        other[0].disconnect()
    other.clear()

    assert heard(listener) == [Disconnected(sender, None if end == "disconnect" else Dropped())]
    assert heard(device) == [Disconnected(sender, None if end == "disconnect" else Dropped())]
    del task


def test_a_parking_of_a_trio_run_that_is_over_is_no_error() -> None:
    async def make() -> Parking:
        return new_parking()

    parking = trio.run(make)
    parking.wake()
    parking.wake_soon()

    async def wake_from_the_next_run() -> str:
        parking.wake()
        return "no error"

    assert trio.run(wake_from_the_next_run) == "no error"


# -- other threads --------------------------------------------------------------------


async def by_receive(device: Device) -> object:
    match await device.receive():
        case Disconnected(_, fault):
            return fault
        case other:
            return other


async def by_iteration(device: Device) -> object:
    async for message in device:
        assert isinstance(message, Disconnected)
        return message.fault
    pytest.fail("ended")


async def by_watch(device: Device) -> object:
    match await device.watch(anyio.sleep_forever):
        case Messaged(Disconnected(_, fault)):
            return fault
        case other:
            return other


async def by_manage(device: Device) -> object:
    with pytest.raises(CascadeCrash) as caught:
        await device.manage(anyio.sleep_forever)
    return caught.value.fault


async def by_own_end(device: Device) -> object:
    """The waiting Device itself is ended elsewhere."""
    with pytest.raises(DeviceDownError):
        await device.receive()
    return Killed()


def in_plain_thread(act: Callable[[], object]) -> None:
    act()


def in_asyncio(act: Callable[[], object]) -> None:
    async def main() -> None:
        await turns(3)
        act()
        await turns(3)

    run_asyncio(main)


def in_trio(act: Callable[[], object]) -> None:
    async def main() -> None:
        await turns(3)
        act()
        await turns(3)

    trio.run(main)


def drop_in_a_finalizer(act: Callable[[], object]) -> None:
    """The end happens in a ``__del__``, during a collection."""

    class Owner:
        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            act()

    Owner()
    gc.collect()


WAITS = [by_receive, by_iteration, by_watch, by_manage, by_own_end]
ENDINGS = [  # a Device that is waited with has an owner, so it is not dropped
    *((wait, "disconnected") for wait in WAITS),
    *((wait, "dropped") for wait in WAITS if wait is not by_own_end),
]
endings = pytest.mark.parametrize(("wait", "end"), ENDINGS)


class Pair:
    """A Device that waits, and one that it hears, until one of them ends."""

    def __init__(self) -> None:
        self.waiting = Device("waiting")
        self._ending = [Device("ending")]
        self.waiting.link(self._ending[0], MONITOR)

    def end(self, wait: Callable[[Device], Awaitable[object]], end: str) -> None:
        """Bring about what somebody waits for."""
        if end == "dropped":
            self._ending.clear()
        elif wait is by_own_end:
            self.waiting.disconnect(Killed())
        else:
            self._ending[0].disconnect(Killed())


FAULTS = {"disconnected": Killed(), "dropped": Dropped()}


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS.keys())
@endings
@pytest.mark.parametrize("elsewhere", [in_plain_thread, in_asyncio, in_trio, drop_in_a_finalizer])
def test_who_waits_is_woken_by_an_end_in_another_thread(
    run: Callable[[Fn], Any],
    wait: Callable[[Device], Awaitable[object]],
    elsewhere: Callable[[Callable[[], object]], None],
    end: str,
    threads: ThreadPoolExecutor,
) -> None:
    pair, waiting = Pair(), threading.Event()

    async def main() -> object:
        async def tell() -> None:
            await turns()
            waiting.set()

        async with anyio.create_task_group() as tg:
            tg.start_soon(tell)
            return await wait(pair.waiting)
        pytest.fail("nothing was heard")

    waiter: Future[object] = threads.submit(run, main)
    assert waiting.wait(PATIENCE)
    threads.submit(elsewhere, partial(pair.end, wait, end)).result(PATIENCE)

    assert waiter.result(PATIENCE) == FAULTS[end]


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS.keys())
def test_messages_of_another_thread_arrive_in_order_and_none_is_lost(
    run: Callable[[Fn], Any], threads: ThreadPoolExecutor
) -> None:
    device, sender = Device(), Device()
    device.link(sender)
    count = 2000

    async def collect() -> list[Message]:
        messages: list[Message] = []
        async for message in device:
            messages.append(message)
            if isinstance(message, Disconnected):
                break
        return messages

    def send() -> None:
        line = device.line()
        for _ in range(count):
            assert line.shutdown(sender.id)
        sender.disconnect()

    collecting = threads.submit(run, collect)
    threads.submit(send).result(PATIENCE)

    messages = collecting.result(PATIENCE)
    assert messages == [Shutdown(sender.id)] * count + [Disconnected(sender.id, None)]


@pytest.mark.anyio
async def test_a_device_may_be_received_from_in_a_thread_and_then_here() -> None:
    device, boss = Device(), Device()
    device.line().shutdown()
    device.line().shutdown(boss.id)

    there = await anyio.to_thread.run_sync(run_asyncio, device.receive)

    assert there == Shutdown(None)
    assert await device.receive() == Shutdown(boss.id)


@pytest.mark.anyio
async def test_two_threads_cannot_receive_at_once(call: type[Call[Message]]) -> None:
    device = Device()

    def receive_there() -> None:
        with pytest.raises(anyio.BusyResourceError):
            run_trio(device.receive)
        with pytest.raises(anyio.BusyResourceError):
            run_asyncio(device.receive)

    async with anyio.create_task_group() as tg:
        tg.start_soon(receiving := call(device.receive))
        await turns()
        await anyio.to_thread.run_sync(receive_there)
        device.line().shutdown()

    assert receiving.value == Shutdown(None)


# -- trio as a guest of asyncio -------------------------------------------------------


class Idle(trio.abc.Instrument):
    """Tells when trio has nothing to run and waits for its sockets and timers, in a thread."""

    def __init__(self) -> None:
        self.event = asyncio.Event()

    def before_io_wait(self, timeout: float) -> None:
        if timeout > 0:
            self.event.set()


def run_guest(
    host: Callable[[asyncio.Event], Awaitable[object]], guest: Callable[[], Awaitable[object]]
) -> tuple[object, object]:
    """Run one function under asyncio and one under trio, in one thread.

    The former is given an event that tells when the guest is idle.
    """

    async def main() -> tuple[object, object]:
        loop = asyncio.get_running_loop()
        over: asyncio.Future[Any] = loop.create_future()
        idle = Idle()
        trio.lowlevel.start_guest_run(
            guest,
            run_sync_soon_threadsafe=loop.call_soon_threadsafe,
            run_sync_soon_not_threadsafe=loop.call_soon,
            done_callback=over.set_result,
            host_uses_signal_set_wakeup_fd=True,
            instruments=[idle],
        )
        try:
            async with asyncio.timeout(PATIENCE):
                return await host(idle.event), (await over).unwrap()
        finally:
            await over

    return run_asyncio(main)


@endings
def test_a_guest_is_woken_by_an_end_in_its_host(
    wait: Callable[[Device], Awaitable[object]], end: str
) -> None:
    pair = Pair()

    async def guest() -> object:
        with trio.fail_after(PATIENCE):
            return await wait(pair.waiting)

    async def host(idle: asyncio.Event) -> None:
        await idle.wait()
        pair.end(wait, end)

    assert run_guest(host, guest)[1] == FAULTS[end]


@endings
def test_a_host_is_woken_by_an_end_in_its_guest(
    wait: Callable[[Device], Awaitable[object]], end: str
) -> None:
    pair = Pair()

    async def guest() -> None:
        await turns()
        pair.end(wait, end)

    async def host(_: asyncio.Event) -> object:
        return await wait(pair.waiting)

    assert run_guest(host, guest)[0] == FAULTS[end]


# -- finalizers in the middle of the loop's own work ----------------------------------


class Interrupted(deque[Any]):
    """Trio's queue of tasks to run, with a collection between its copy and its clearing.

    CPython collects between any two instructions. Trio takes two to empty its
    queue; a task that is put there in between is never run.
    """

    def __init__(self, tasks: deque[Any], interrupt: Callable[[], object]) -> None:
        super().__init__(tasks)
        self.interrupt: Callable[[], object] | None = interrupt

    def clear(self) -> None:
        interrupt, self.interrupt = self.interrupt, None
        if interrupt is not None:
            interrupt()
        super().clear()


async def interrupted(interrupt: Callable[[], object]) -> None:
    runner = GLOBAL_RUN_CONTEXT.runner
    runner.runq = Interrupted(runner.runq, interrupt)
    await turns()


def lost(waiting: Call[Any]) -> bool:
    """Whether the task of a call is never run again; if so it is put back, to end the test."""
    if waiting.over:
        return False
    [task] = [
        task
        for nursery in trio.lowlevel.current_task().child_nurseries
        for task in nursery.child_tasks
    ]
    GLOBAL_RUN_CONTEXT.runner.runq.append(task)
    return True


def abandoned_device(listener: Device) -> list[Any]:
    owner: list[Any] = [Device()]
    listener.link(owner[0], MONITOR)
    owner.append(owner)
    return owner


def abandoned_block(listener: Device) -> list[Any]:
    def work() -> Generator[None]:
        with Device() as device:
            listener.link(device, MONITOR)
            yield

    owner: list[Any] = [work()]
    next(owner[0])
    owner.append(owner)
    return owner


def abandoned_disconnect(listener: Device) -> object:
    class Owner:
        def __init__(self) -> None:
            self.device = Device()
            listener.link(self.device, MONITOR)
            self.me = self

        def __del__(self) -> None:
            self.device.disconnect(Killed())

    return Owner()


@pytest.mark.anyio
@only_trio
@pytest.mark.parametrize(
    ("abandoned", "fault"),
    [
        (abandoned_device, Dropped()),
        (abandoned_block, Dropped()),
        (abandoned_disconnect, Killed()),
    ],
)
async def test_an_end_in_a_collection_in_the_middle_of_trios_work_loses_no_task(
    abandoned: Callable[[Device], object], fault: Fault, call: type[Call[Message]]
) -> None:
    device = Device()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receiving := call(device.receive))
        await turns()
        garbage = abandoned(device)
        del garbage
        await interrupted(gc.collect)
        await turns()
        was_lost = lost(receiving)

    assert not was_lost
    assert isinstance(receiving.value, Disconnected)
    assert receiving.value.fault == fault


class Signalled(selectors.DefaultSelector):
    """Gets a signal while it waits, so that Python runs its handler there, and waits on."""

    def __init__(self, handler: Callable[[], object]) -> None:
        super().__init__()
        self.handler: Callable[[], object] | None = handler
        self.overslept = False

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout != 0 and self.handler is not None:
            handler, self.handler = self.handler, None
            handler()
            ready = super().select(0)
            self.overslept = not ready  # there is nothing that would end the wait
            return ready
        return super().select(timeout)


@pytest.mark.parametrize("wait", WAITS)
def test_a_signal_handler_may_end_a_device(wait: Callable[[Device], Awaitable[object]]) -> None:
    """It runs in the thread of the loop, but the loop sleeps, and has to be woken."""
    pair = Pair()
    selector = Signalled(partial(pair.end, wait, "disconnected"))

    async def main() -> object:
        return await wait(pair.waiting)

    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selector)) as runner:
        fault = runner.run(main())

    assert fault == Killed()
    assert not selector.overslept


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_work_whose_coroutine_is_collected_drops_its_device() -> None:
    listener, device = Device(), Device()
    listener.link(device, MONITOR)
    sender = device.id
    working: Any = device.manage(anyio.sleep_forever)
    working.send(None)  # as a task does, up to its wait

    del device, working
    gc.collect()

    assert heard(listener) == [Disconnected(sender, Dropped())]


# -- the mesh and other people's tasks ------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_a_future_that_cannot_be_cancelled_keeps_nobody_else_from_hearing(
    call: type[Call[None]],
) -> None:
    """User code runs when a task is cancelled: its faults must not reach who ends a Device."""

    class Stubborn(asyncio.Future[None]):
        stubborn = True

        def cancel(self, msg: object = None) -> bool:
            if self.stubborn:
                raise ValueError("cannot be cancelled")
            return super().cancel()

    first, last, other = Device(), Device(), Device()
    first.link(other, MONITOR)
    last.link(other, MONITOR)
    future = Stubborn()
    reported: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, about: reported.append(about))

    async def work() -> None:
        await future

    async def outcome() -> None:
        with pytest.raises(CascadeCrash):
            await first.manage(work)

    async with anyio.create_task_group() as tg:
        tg.start_soon(call(outcome))
        await turns()
        try:
            other.disconnect(Killed())
        except ValueError:
            told = False
        else:
            told = True
        future.stubborn = False
        future.set_result(None)

    assert told
    assert heard(last) == [Disconnected(other.id, Killed())]
    assert [type(about["exception"]) for about in reported] == [ValueError]


@pytest.mark.anyio
async def test_who_ends_a_device_is_not_interrupted_by_those_who_hear(
    call: type[Call[None]],
) -> None:
    """Whoever is woken runs later, not inside ``disconnect``."""
    other, diary = Device(), []

    async def worker(name: str) -> None:
        device = Device(name)
        device.link(other, MONITOR)
        try:
            await device.manage(anyio.sleep_forever)
        except CascadeCrash:
            diary.append(name)

    async with anyio.create_task_group() as tg:
        for name in ("one", "two"):
            tg.start_soon(call(worker, name))
        await turns()
        other.disconnect(Killed())
        assert diary == []

    assert sorted(diary) == ["one", "two"]


# -- what is a cancellation -----------------------------------------------------------


async def _caught_in_trio() -> BaseException:
    with trio.CancelScope() as scope:
        scope.cancel()
        try:
            await trio.sleep_forever()
        except trio.Cancelled as cancelled:
            return cancelled
    raise AssertionError


def test_the_cancellations_of_both_libraries_are_told_from_errors() -> None:
    of_asyncio, of_trio = asyncio.CancelledError(), trio.run(_caught_in_trio)

    assert is_cancellation(of_asyncio)
    assert is_cancellation(of_trio)
    assert is_cancellation(BaseExceptionGroup("", [of_asyncio, of_trio]))
    assert is_cancellation(BaseExceptionGroup("", [BaseExceptionGroup("", [of_trio])]))
    assert not is_cancellation(ValueError())
    assert not is_cancellation(KeyboardInterrupt())
    assert not is_cancellation(BaseExceptionGroup("", [of_trio, ValueError()]))


def test_an_error_among_cancellations_is_a_failure() -> None:
    group = BaseExceptionGroup("", [asyncio.CancelledError(), ValueError()])
    listener, device = Device(), Device()
    listener.link(device)

    with pytest.raises(BaseExceptionGroup), device:
        raise group

    assert heard(listener) == [Disconnected(device.id, Failed(group))]


# -- what is imported -----------------------------------------------------------------


def loaded_by(script: str) -> set[str]:
    """The modules that are loaded after a script has run in an interpreter of its own."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"{script}\nimport sys; print(*sys.modules)"],
        capture_output=True,
        check=True,
        text=True,
        timeout=60,
    )
    return set(done.stdout.split())


def test_importing_backplane_loads_no_event_loop_and_no_upper_tier() -> None:
    loaded = loaded_by("import backplane")

    assert loaded.isdisjoint({"asyncio", "trio", "anyio", "uvloop", "msgspec"})
    ours = {name for name in loaded if name.startswith("backplane.")}
    assert all(name.startswith("backplane._") for name in ours)


def test_devices_need_no_event_loop_to_be_loaded() -> None:
    loaded = loaded_by(
        "from backplane import *\n"
        "with Device() as a, Device() as b:\n"
        " a.link(b); b.line().shutdown(); b.receive_nowait(); b.disconnect(Failed(ValueError()))\n"
        " a.receive_nowait()"
    )

    assert loaded.isdisjoint({"asyncio", "trio", "anyio"})


def test_waiting_under_asyncio_does_not_load_trio() -> None:
    loaded = loaded_by(
        "import asyncio\n"
        "from backplane import *\n"
        "async def main():\n"
        " d = Device(); d.line().shutdown(); await d.receive(); await d.manage(asyncio.sleep, 0)\n"
        "asyncio.run(main())"
    )

    assert "trio" not in loaded


def test_waiting_under_trio_does_not_load_the_part_for_asyncio() -> None:
    loaded = loaded_by(
        "import trio\n"
        "from backplane import *\n"
        "async def main():\n"
        " d = Device(); d.line().shutdown(); await d.receive(); await d.manage(trio.sleep, 0)\n"
        "trio.run(main)"
    )

    assert not any(name.startswith("backplane") and "asyncio" in name for name in loaded)


# -- a cascade goes from library to library -------------------------------------------


def test_a_cascade_goes_through_threads_and_libraries(threads: ThreadPoolExecutor) -> None:
    devices = [Device(str(number)) for number in range(3)]
    ready = threading.Semaphore(0)

    def worker(number: int) -> Fn:
        async def main() -> Fault | None:
            async def work() -> None:
                ready.release()
                await anyio.sleep_forever()

            with pytest.raises(CascadeCrash) as caught:
                await devices[number].manage(work)
            return caught.value.root

        return main

    origin = Device("origin")
    devices[0].link(origin, MONITOR)
    devices[1].link(devices[0], MONITOR)
    devices[2].link(devices[1], MONITOR)
    listener = Device()
    listener.link(devices[2], MONITOR)
    running = [
        threads.submit(run_asyncio, worker(0)),
        threads.submit(run_trio, worker(1)),
        threads.submit(run_asyncio, worker(2)),
    ]
    for _ in devices:
        assert ready.acquire(timeout=PATIENCE)

    origin.disconnect(Killed())

    assert [each.result(PATIENCE) for each in running] == [Killed(), Killed(), Killed()]
    [message] = heard(listener)
    assert isinstance(message, Disconnected)
    assert isinstance(message.fault, Cascaded)
    assert message.fault.path == (devices[1].id, devices[0].id, origin.id)
