"""Aliases: what is sent to one arrives until it is taken back, and never after."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import anyio
import pytest

from backplane import Device
from backplane.otp import (
    NOPROC,
    NORMAL,
    Alias,
    Down,
    MailboxFullError,
    NotInProcessError,
    Pid,
    Process,
    Scope,
    alias,
    current_process,
    monitor_alias,
    send,
)

if TYPE_CHECKING:  # mypy knows it by another name than pytest
    from otp.process_world import lone, within
else:
    from .process_world import lone, within

pytestmark = pytest.mark.anyio


async def test_an_alias_leads_to_its_process_until_it_is_taken_back() -> None:
    async def main() -> None:
        address = alias()

        assert address.send(1)
        assert send(address, 2)
        assert address.deactivate()
        assert not address.active
        assert not address.deactivate()
        assert not address.send(3)

        assert list(current_process().mailbox) == [1, 2]

    await within(main)


async def test_a_reply_alias_takes_one_message() -> None:
    async def main() -> None:
        address = alias(reply=True)

        assert address.send(1)
        assert not address.send(2)
        assert not address.active
        assert not address.deactivate()

        assert list(current_process().mailbox) == [1]

    await within(main)


async def test_the_aliases_of_a_process_end_with_it() -> None:
    made: list[Alias] = []

    async def main() -> None:
        made.extend([alias(), alias(reply=True)])
        assert repr(made[0]).startswith("<Alias of <Pid ")
        assert not repr(made[0]).endswith("(not active)>")

    await within(main)

    for address in made:
        assert not address.active
        assert not address.send(1)
        assert not address.deactivate()
        assert repr(address).endswith(" (not active)>")


def test_an_alias_is_made_by_a_process() -> None:
    with pytest.raises(NotInProcessError, match="cannot make an alias"):
        alias()
    with pytest.raises(NotInProcessError, match="cannot make an alias"):
        monitor_alias(lone().pid)


def test_a_reply_that_does_not_fit_does_not_use_up_the_alias() -> None:
    process = Process(Device(), capacity=1)
    address = Alias(process, reply=True)
    process.deliver("full")

    with pytest.raises(MailboxFullError):
        address.send(1)
    process.mailbox.clear()

    assert address.send(2)
    assert not address.send(3)


async def test_an_alias_with_a_monitor_ends_when_the_down_comes() -> None:
    async def main() -> None:
        me, server = current_process(), lone()
        ref, address = monitor_alias(server.pid)

        assert address.send("answer")
        server.end("crash")

        assert not address.send("late")
        assert list(me.mailbox) == ["answer", Down(ref, server.pid, "crash")]

    await within(main)


async def test_an_alias_with_a_monitor_of_a_dead_process_is_not_active() -> None:
    async def main() -> None:
        me, server = current_process(), lone()
        server.end(NORMAL)

        ref, address = monitor_alias(server.pid)

        assert not address.active
        assert list(me.mailbox) == [Down(ref, server.pid, NOPROC)]

    await within(main)


async def test_an_alias_with_a_monitor_ends_with_demonitor() -> None:
    async def main() -> None:
        me, server = current_process(), lone()
        ref, address = monitor_alias(server.pid)

        assert me.demonitor(ref)

        assert not address.send("late")
        server.end(NORMAL)
        assert not me.mailbox

    await within(main)


@pytest.mark.parametrize("by", ["deactivate", "first message"])
async def test_the_end_of_an_alias_ends_its_monitor(by: str) -> None:
    async def main() -> None:
        me, server = current_process(), lone()
        ref, address = monitor_alias(server.pid, reply=True)

        if by == "deactivate":
            assert address.deactivate()
        else:
            assert address.send("answer")
        server.end(NORMAL)

        assert not address.send("late")
        assert not me.demonitor(ref)
        assert list(me.mailbox) == ([] if by == "deactivate" else ["answer"])

    await within(main)


async def test_an_alias_with_a_monitor_takes_many_messages_if_not_told_otherwise() -> None:
    async def main() -> None:
        server = lone()
        _, address = monitor_alias(server.pid)

        assert address.send(1)
        assert address.send(2)

        assert address.deactivate()

    await within(main)


async def test_an_alias_cannot_depend_on_its_own_process() -> None:
    async def main() -> None:
        with pytest.raises(ValueError, match="monitor of itself"):
            monitor_alias(current_process().pid)

    await within(main)


@pytest.mark.usefixtures("rapid_switching")
@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_of_answers_from_several_threads_one_arrives() -> None:
    process = lone()
    addresses = [Alias(process, reply=True) for _ in range(300)]
    start = threading.Barrier(4)
    sent: list[int] = []

    def answer(who: int) -> None:
        start.wait()
        for index, address in enumerate(addresses):
            if address.send((index, who)):
                sent.append(index)

    async with anyio.create_task_group() as tg:
        for who in range(4):
            tg.start_soon(anyio.to_thread.run_sync, answer, who)

    assert sorted(sent) == list(range(300))
    assert sorted(index for index, _ in process.mailbox) == list(range(300))


async def test_a_late_answer_to_a_request_vanishes() -> None:
    async def server() -> None:
        me = current_process()
        address = await me.receive()
        await me.receive()
        address.send("late")

    async def client(pid: Pid) -> None:
        me = current_process()
        _, address = monitor_alias(pid, reply=True)
        pid.send(address)
        with pytest.raises(TimeoutError):
            await me.receive(timeout=0)
        address.deactivate()
        pid.send("go on")
        await pid.wait()
        assert not me.mailbox

    async with Scope() as scope:
        assert await scope.spawn(client, scope.spawn(server)).wait() is NORMAL
