"""Draining a plain process: it takes no more, receives what it has, and ends."""

from __future__ import annotations

import math
from typing import Any

import anyio
import pytest

from backplane import Device
from backplane.otp import (
    KILL,
    KILLED,
    NORMAL,
    Down,
    Exit,
    Exited,
    GenServer,
    Match,
    NoReply,
    Pid,
    Process,
    Scope,
    ServerDownError,
    ServerRef,
    Stopped,
    _mailbox,
    call,
    cast,
    current_process,
    spawn_monitor,
    start,
    system,
)
from backplane.otp._messages import Cast

pytestmark = pytest.mark.anyio
virtual = pytest.mark.parametrize(
    "anyio_backend", ["virtual asyncio", "virtual trio"], indirect=True
)
DRAINED = Stopped("drained")


async def reader(found: list[object]) -> None:
    await anyio.sleep(1)
    while True:
        found.append(await current_process().receive())


@virtual
@pytest.mark.parametrize("options", [{"capacity": 5}, {}], ids=["bounded", "unbounded"])
async def test_a_drained_process_receives_what_it_has_and_ends(options: dict[str, Any]) -> None:
    found: list[object] = []

    async with Scope() as scope:
        pid = scope.spawn(reader, found, **options)
        for number in range(3):
            assert pid.send(number)
        pid.drain()

        assert not pid.send("too late")
        assert not await pid.wait_send("too late")
        assert pid.alive
        assert await pid.wait() == DRAINED
        assert anyio.current_time() == 1
    assert found == [0, 1, 2]


@virtual
async def test_a_process_that_waits_for_a_message_is_drained_at_once() -> None:
    async with Scope() as scope:
        pid = scope.spawn(reader, [])
        await anyio.sleep(5)
        pid.drain()

        assert await pid.wait() == DRAINED
        assert anyio.current_time() == 5


@virtual
async def test_one_that_does_not_receive_any_more_ends_as_it_would_have() -> None:
    async with Scope() as scope:
        pid = scope.spawn(anyio.sleep, 3)
        pid.drain()

        assert await pid.wait() is NORMAL
        assert anyio.current_time() == 3


@virtual
async def test_one_that_is_drained_before_it_has_begun_runs_until_it_receives() -> None:
    began: list[bool] = []

    async def late() -> None:
        began.append(True)
        await current_process().receive()
        began.append(False)

    async with Scope() as scope:
        pid = scope.spawn(late)
        pid.drain()

        assert await pid.wait() == DRAINED
    assert began == [True]


@virtual
async def test_who_waits_for_room_in_a_mailbox_is_told_that_it_takes_no_more() -> None:
    found: list[object] = []
    sent: list[bool] = []

    async def sender(pid: Pid) -> None:
        sent.append(await pid.wait_send("too late"))

    async with Scope() as scope, anyio.create_task_group() as tg:
        pid = scope.spawn(reader, found, capacity=1)
        pid.send(1)
        tg.start_soon(sender, pid)
        await anyio.sleep(0.5)
        pid.drain()

    assert sent == [False]
    assert found == [1]


@virtual
async def test_a_call_to_a_drained_process_says_at_once_that_nobody_answers() -> None:
    async with Scope() as scope:
        pid = scope.spawn(anyio.sleep, 100)
        pid.drain()
        with pytest.raises(ServerDownError):
            await call(pid, "too late", timeout=50)

        assert anyio.current_time() == 0
        pid.exit(KILL)
        assert await pid.wait() is KILLED


@virtual
async def test_one_that_is_being_drained_is_still_linked_and_monitored() -> None:
    async def fragile() -> None:
        await current_process().receive()
        raise Exit("boom")

    async def watcher() -> None:
        me = current_process()
        pid, ref = spawn_monitor(fragile, link=True)
        pid.send("go")
        pid.drain()

        assert await me.receive(Exited) == Exited(pid, "boom")
        assert await me.receive(Down) == Down(ref, pid, "boom")

    async with Scope() as scope:
        assert await scope.spawn(watcher, trap_exit=True).wait() is NORMAL


@virtual
async def test_a_good_end_by_draining_ends_those_that_are_linked_for_that_reason() -> None:
    async def partner() -> None:
        pid, _ = spawn_monitor(reader, [], link=True)
        pid.drain()
        await anyio.sleep(math.inf)

    async with Scope() as scope:
        assert await scope.spawn(partner).wait() == DRAINED


@virtual
@pytest.mark.parametrize("options", [{"capacity": 9}, {}], ids=["bounded", "unbounded"])
@pytest.mark.parametrize("match", [str, lambda _: False, object], ids=["type", "function", "all"])
async def test_one_that_waits_for_what_can_come_no_more_ends(
    options: dict[str, Any], match: Match
) -> None:
    found: list[object] = []

    async def choosy() -> None:
        while True:
            found.append(await current_process().receive(match))

    async with Scope() as scope:
        pid = scope.spawn(choosy, **options)
        await anyio.sleep(1)
        for number in range(3):
            pid.send(number)
        pid.drain()

        assert await pid.wait() == DRAINED
        assert anyio.current_time() == 1
    assert found == ([0, 1, 2] if match is object else [])


@virtual
async def test_one_that_was_told_that_it_is_drained_is_told_so_again() -> None:
    async def stubborn() -> None:
        for _ in range(2):
            with pytest.raises(Exit, match="drained"):
                await current_process().receive()

    async with Scope() as scope:
        pid = scope.spawn(stubborn)
        pid.drain()

        assert await pid.wait() is NORMAL


@virtual
@pytest.mark.parametrize("match", [None, int], ids=["any", "chosen"])
async def test_what_another_thread_put_in_while_it_was_closed_is_received_too(match: Match) -> None:
    found: list[object] = []

    async def reader() -> None:
        await anyio.sleep(1)
        while True:
            found.append(await current_process().receive(match))

    async with Scope() as scope:
        pid = scope.spawn(reader)
        pid.send("early")
        pid.send(1)
        pid.drain()
        # As a thread does that has found it open just before.
        pid._process.mailbox.append(2)
        pid._process.mailbox.append("late")

        assert await pid.wait() == DRAINED
    assert found == (["early", 1, 2, "late"] if match is None else [1, 2])


class Keeper(GenServer):
    def init(self, found: list[object]) -> None:
        self._found = found

    async def handle_cast(self, message: Any) -> None:
        self._found.append(message)
        await anyio.sleep(1)


@virtual
@pytest.mark.parametrize("idle", [None, 50.0], ids=["plain", "with an idle timeout"])
async def test_a_server_handles_what_another_thread_put_in_while_it_was_closed(
    idle: float | None,
) -> None:
    class Patient(Keeper):
        async def handle_cast(self, message: Any) -> NoReply:  # type: ignore[override]
            await super().handle_cast(message)
            return NoReply(timeout=idle)

    found: list[object] = []
    async with Scope():
        ref: ServerRef[Patient] = await start(Patient, found)
        for number in 1, 2:
            cast(ref, number)
        ref.drain()
        ref.pid._process.mailbox.append(Cast(3))

        assert await ref.wait() == DRAINED
    assert found == [1, 2, 3]


@virtual
async def test_a_suspended_server_is_drained_when_it_goes_on() -> None:
    found: list[object] = []
    async with Scope():
        ref: ServerRef[Keeper] = await start(Keeper, found)
        await system.suspend(ref)
        cast(ref, 1)
        ref.drain()
        await anyio.sleep(5)
        assert ref.pid.alive
        await system.resume(ref)

        assert await ref.wait() == DRAINED
    assert found == [1]


async def test_a_bounded_mailbox_that_is_closed_at_that_moment_takes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    process = Process(Device(), capacity=2)
    lock = _mailbox.lock

    class Late:
        """The lock, as a sender gets it who has waited for the one that drained."""

        def __enter__(self) -> None:
            monkeypatch.setattr(_mailbox, "lock", lock)
            process.drain()

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(_mailbox, "lock", Late())

    assert not process.deliver("late")
    assert list(process.mailbox) == [_mailbox.DRAINED]
