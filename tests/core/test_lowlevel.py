"""What upper tiers are made of: parking until a time, alarms, waits that outlast cancellation."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from backplane.lowlevel import (
    Job,
    Parking,
    clock,
    new_parking,
    on_alive,
    outlast,
    set_alarm,
    start_job,
)

pytestmark = pytest.mark.anyio
virtual = pytest.mark.parametrize(
    "anyio_backend", ["virtual asyncio", "virtual trio"], indirect=True
)


async def until(parking: Parking, deadline: float) -> None:
    """As all who park do: it may wake for nothing."""
    while clock()() < deadline:
        await parking.park_until(deadline)


# -- parking until a time


@virtual
async def test_parking_ends_at_its_time_exactly() -> None:
    deadline = clock()() + 3600

    await new_parking().park_until(deadline)

    assert clock()() == deadline


async def test_parking_until_a_time_ends_then_on_every_loop() -> None:
    now = clock()
    for seconds in [0.0, 0.0004, 0.003, 0.0107]:
        deadline = now() + seconds
        with anyio.fail_after(5):
            await until(new_parking(), deadline)
        assert now() >= deadline


async def test_parking_until_a_time_that_has_passed_ends_at_once() -> None:
    with anyio.fail_after(5):
        await new_parking().park_until(clock()() - 1)


async def test_a_wake_ends_the_parking_before_its_time() -> None:
    parking = new_parking()
    threading.Timer(0.01, parking.wake).start()

    with anyio.fail_after(30):
        await parking.park_until(clock()() + 3600)


async def test_a_wake_that_comes_early_is_kept_once() -> None:
    parking, now = new_parking(), clock()
    parking.wake()
    await parking.park_until(now() + 3600)

    deadline = now() + 0.01
    await until(parking, deadline)
    assert now() >= deadline


async def test_a_rest_ends_with_the_next_wake_and_keeps_none() -> None:
    parking = new_parking()
    parking.wake()  # comes too early
    with anyio.move_on_after(0.01) as scope:
        await parking.rest()
    assert scope.cancelled_caught

    async with anyio.create_task_group() as tg:
        tg.start_soon(wake_after, parking, 0.01)
        with anyio.fail_after(30):
            await parking.rest()


@virtual
async def test_a_parking_is_used_again_after_its_time_and_after_a_cancellation() -> None:
    parking, now = new_parking(), clock()
    begin = now()
    for _ in range(3):
        await parking.park_until(now() + 1)
        with anyio.move_on_after(1):
            await parking.park_until(now() + 3600)
    assert now() == begin + 6

    async with anyio.create_task_group() as tg:
        tg.start_soon(wake_after, parking, 10)
        start = now()
        await parking.park_until(start + 3600)
        assert now() == start + 10


async def wake_after(parking: Parking, seconds: float) -> None:
    await anyio.sleep(seconds)
    parking.wake()


@virtual
async def test_a_timer_of_an_earlier_parking_does_not_wake_the_next() -> None:
    parking, now = new_parking(), clock()
    async with anyio.create_task_group() as tg:
        tg.start_soon(wake_after, parking, 1)
        await parking.park_until(now() + 5)
    start = now()

    await parking.park_until(start + 100)

    assert now() == start + 100


@virtual
async def test_a_cancellation_from_outside_passes_a_parking(call: Any) -> None:
    async with anyio.create_task_group() as tg:
        parking = call(lambda: new_parking().park_until(clock()() + 3600))
        tg.start_soon(parking)
        await anyio.sleep(1)
        parking.cancel()
        await parking.wait()

    assert parking.cancelled
    assert clock()() < 100


# -- alarms


@virtual
async def test_an_alarm_rings_at_its_time_once() -> None:
    rung: list[float] = []
    alarm = set_alarm(clock()() + 10, lambda: rung.append(clock()()))

    await anyio.sleep(100)

    assert rung == [alarm.due]
    assert not alarm.cancel()


async def test_no_alarm_rings_early_on_any_loop() -> None:
    now, early, rung = clock(), [], anyio.Event()
    left = 30

    def ring(due: float) -> None:
        nonlocal left
        early.append(now() < due)
        left -= 1
        if not left:
            rung.set()

    for number in range(left):
        due = now() + 0.0003 * number
        set_alarm(due, lambda due=due: ring(due))  # type: ignore[misc]
    with anyio.fail_after(30):
        await rung.wait()

    assert early == [False] * 30


@virtual
async def test_alarms_ring_in_the_order_of_their_times() -> None:
    rung: list[int] = []
    start = clock()()
    for number in [3, 1, 2]:
        set_alarm(start + number, lambda number=number: rung.append(number))  # type: ignore[misc]

    await anyio.sleep(5)

    assert rung == [1, 2, 3]


@virtual
async def test_a_cancelled_alarm_does_not_ring() -> None:
    rung: list[int] = []
    alarm = set_alarm(clock()() + 1, lambda: rung.append(1))
    at_once = set_alarm(clock()() + 1, lambda: rung.append(2))

    assert at_once.cancel()
    await anyio.sleep(0.5)
    assert alarm.cancel()
    assert not alarm.cancel()
    await anyio.sleep(5)

    assert rung == []


@virtual
async def test_an_alarm_outlives_the_task_that_set_it() -> None:
    rung: list[int] = []
    with anyio.move_on_after(1):
        set_alarm(clock()() + 5, lambda: rung.append(1))
        await anyio.sleep(100)

    await anyio.sleep(10)

    assert rung == [1]


@virtual
async def test_an_alarm_may_set_the_next() -> None:
    rung: list[float] = []

    def ring() -> None:
        rung.append(clock()())
        if len(rung) < 5:
            set_alarm(rung[-1] + 1, ring)

    start = clock()()
    set_alarm(start + 1, ring)
    await anyio.sleep(60)

    assert rung == [start + number for number in range(1, 6)]


# -- waiting that outlasts cancellation


@virtual
@pytest.mark.parametrize("cancels", [0, 1, 3])
async def test_a_wait_outlasts_each_cancellation_and_lets_it_go_on(cancels: int, call: Any) -> None:
    finished: list[int] = []
    parking: list[Parking] = []

    async def wait() -> None:
        parking.append(new_parking())
        await outlast(lambda: len(finished) == 1, parking[0].park)
        await checkpoint()

    async with anyio.create_task_group() as tg:
        waiting = call(wait)
        tg.start_soon(waiting)
        for _ in range(cancels):
            await anyio.sleep(1)
            waiting.cancel()
        await anyio.sleep(1)
        assert not waiting.over
        finished.append(1)
        parking[0].wake()
        await waiting.wait()

    assert waiting.cancelled is bool(cancels)


@virtual
async def test_what_is_done_already_is_not_waited_for() -> None:
    async def wait() -> None:
        raise AssertionError

    await outlast(lambda: True, wait)
    with pytest.raises(ValueError, match="from the wait"):
        await outlast(lambda: False, failing)


async def failing() -> None:
    raise ValueError("from the wait")


# -- reports of work that is alive


async def test_where_nobody_looks_after_the_work_nobody_hears_that_it_is_alive() -> None:
    with pytest.raises(LookupError):
        on_alive.get()


async def test_work_reports_to_the_innermost_that_looks_after_it() -> None:
    heard: list[str] = []
    ended = new_parking()

    def look_after(name: str, work: Callable[[], Awaitable[None]]) -> Job:
        async def run() -> None:
            on_alive.set(lambda: heard.append(name))
            await work()

        return start_job(run, lambda _: ended.wake(), name)

    async def outer() -> None:
        on_alive.get()()
        inner = look_after("inner", report_from_a_task_and_a_thread)
        while not inner.done:
            await checkpoint()
        on_alive.get()()

    job = look_after("outer", outer)
    while not job.done:
        await ended.park()

    assert job.exception is None
    assert heard == ["outer", "inner", "inner", "outer"]


async def report_from_a_task_and_a_thread() -> None:
    async with anyio.create_task_group() as tg:
        tg.start_soon(report)
    await anyio.to_thread.run_sync(lambda: on_alive.get()())


async def report() -> None:
    on_alive.get()()
    await checkpoint()
