"""Watchdogs of a supervisor whose own loop stands still at times, in real time."""

from __future__ import annotations

import socket
import threading
import time

import anyio
import anyio.lowlevel
import pytest

from backplane.supervisor import ChildSpec, ChildUnresponsive, Event, Supervisor, alive

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("nothing_left")]


def stand_still(seconds: float) -> None:
    """Hold up the whole loop."""
    time.sleep(seconds)


async def test_reports_that_lie_unread_after_the_loop_stood_still_are_waited_for() -> None:
    here, there = socket.socketpair()
    over = threading.Event()
    lives: list[int] = []

    def say_alive() -> None:
        with there:
            while not over.wait(0.01):
                there.send(b"alive")

    async def relay() -> None:
        """Report for somebody elsewhere, as soon as what he says has been read and understood."""
        lives.append(1)
        while True:
            await anyio.wait_readable(here)
            here.recv(1 << 16)
            for _ in range(3):
                await anyio.lowlevel.checkpoint()
            alive()

    speaker = threading.Thread(target=say_alive)
    speaker.start()
    with here:  # for longer than somebody speaks
        try:
            async with Supervisor([ChildSpec("relay", relay, watchdog=1)]):
                for _ in range(2):
                    await anyio.sleep(0.1)
                    stand_still(1.5)
                await anyio.sleep(0.1)
        finally:
            over.set()
            speaker.join()
    assert lives == [1]


async def test_one_that_is_silent_is_found_though_the_loop_stood_still() -> None:
    events: list[Event] = []

    async def hang() -> None:
        await anyio.sleep_forever()

    async with Supervisor([ChildSpec("hang", hang, watchdog=0.2)], subscribers=[events.append]):
        await anyio.sleep(0.01)
        stand_still(1)
        with anyio.fail_after(20):
            while not any(isinstance(event, ChildUnresponsive) for event in events):
                await anyio.sleep(0.01)
