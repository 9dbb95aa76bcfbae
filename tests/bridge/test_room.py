"""Those who wait for a slow peer: each has its turn, in the order of coming."""

from __future__ import annotations

import threading
from typing import Any

import anyio
import pytest

from backplane.bridge._room import Room
from backplane.lowlevel import checkpoint

pytestmark = pytest.mark.anyio


class Scales:
    """What holds so many things at most."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.held = most
        self.taken: list[Any] = []
        self.room = Room(self.is_free)
        self._lock = threading.Lock()

    def is_free(self) -> bool:
        return self.held < self.most

    def take(self, thing: Any) -> bool:
        with self._lock:
            if not self.is_free():
                return False
            self.held += 1
            self.taken.append(thing)
            return True

    def drop(self, things: int) -> None:
        with self._lock:
            self.held -= things
        self.room.open()

    async def put(self, thing: Any) -> None:
        again = False
        while not ((again or not self.room) and self.take(thing)):
            await self.room.wait(again)
            again = True
        self.room.open()


async def waiting(scales: Scales, number: int) -> None:
    with anyio.fail_after(20):
        while len(scales.room) != number:
            await checkpoint()


async def test_each_has_its_turn_in_the_order_of_coming() -> None:
    scales = Scales(2)
    async with anyio.create_task_group() as tg:
        for number in range(9):
            tg.start_soon(scales.put, number)
            await waiting(scales, number + 1)
        for number in range(7, -1, -2):
            scales.drop(2)
            await anyio.wait_all_tasks_blocked()
            assert len(scales.room) == number
        scales.drop(1)

    assert scales.taken == list(range(9))


async def test_who_finds_no_room_in_his_turn_stays_the_first() -> None:
    scales = Scales(1)
    async with anyio.create_task_group() as tg:
        for number in range(2):
            tg.start_soon(scales.put, number)
            await waiting(scales, number + 1)
        scales.drop(1)
        assert scales.take("one who does not wait")
        await waiting(scales, 2)
        assert scales.taken == ["one who does not wait"]
        for _ in range(2):
            scales.drop(1)
            await anyio.wait_all_tasks_blocked()

    assert scales.taken == ["one who does not wait", 0, 1]


@pytest.mark.parametrize("has_turn", [True, False])
async def test_who_gives_up_passes_his_turn_on(has_turn: bool) -> None:
    scales = Scales(1)
    async with anyio.create_task_group() as tg:
        tg.cancel_scope.deadline = anyio.current_time() + 20
        given_up = anyio.CancelScope()

        async def give_up() -> None:
            with given_up:
                await scales.put("never")

        for put in (give_up, lambda: scales.put("other")):
            tg.start_soon(put)
            await waiting(scales, len(scales.room) + 1)
        given_up.cancel()
        if not has_turn:
            await waiting(scales, 1)
        scales.drop(1)

    assert scales.taken == ["other"]


async def test_who_comes_when_there_is_room_does_not_wait() -> None:
    scales = Scales(1)
    scales.held = 0

    with anyio.fail_after(20):
        await scales.room.wait(False)


async def test_in_the_end_it_is_everybodys_turn() -> None:
    scales = Scales(1)
    turns: list[int] = []

    async def wait(number: int) -> None:
        await scales.room.wait(False)
        turns.append(number)

    async with anyio.create_task_group() as tg:
        for number in range(5):
            tg.start_soon(wait, number)
        await waiting(scales, 5)
        scales.room.close()

    assert sorted(turns) == list(range(5))
    assert len(scales.room) == 0


async def test_no_turn_is_lost_between_threads() -> None:
    scales = Scales(1)
    count, kinds = 300, 4

    async def put_all(thread: int) -> None:
        for number in range(count):
            await scales.put((thread, number))

    threads = [
        threading.Thread(target=anyio.run, args=(put_all, thread)) for thread in range(kinds)
    ]
    for each in threads:
        each.start()
    with anyio.fail_after(60):
        while len(scales.taken) < count * kinds:
            if not scales.is_free():
                scales.drop(1)
            await checkpoint()
    for each in threads:
        each.join()

    for thread in range(kinds):
        assert [number for who, number in scales.taken if who == thread] == list(range(count))
