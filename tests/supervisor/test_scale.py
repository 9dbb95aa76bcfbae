"""Many children: what concerns one of them costs the same however many others there are.

No clock is asked, which other programs could disturb: the calls of Python
functions are counted, by the library and by the event loop alike.
"""

# ruff: noqa: PT012 - what raises is the block of a supervisor, and things happen in it

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from types import FrameType
from typing import Any, Self

import anyio
import anyio.lowlevel
import pytest

from backplane import testing
from backplane.supervisor import (
    AutoShutdown,
    Backoff,
    ChildSpec,
    DynamicSupervisor,
    MaxRestartsError,
    Restart,
    Strategy,
    Supervisor,
)

pytestmark = pytest.mark.usefixtures("nothing_left")
both_loops = pytest.mark.parametrize("backend", ["asyncio", "trio"])

QUIET: dict[str, Any] = {"subscribers": [], "max_restarts": 10**6}


class Calls:
    """Counts the calls of Python functions within a block."""

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> Self:
        self._outer = sys.getprofile()
        sys.setprofile(self._see)
        return self

    def __exit__(self, *exc_info: object) -> None:
        sys.setprofile(self._outer)

    def _see(self, frame: FrameType, event: str, arg: object) -> None:
        if event == "call":
            self.count += 1


async def settle() -> None:
    for _ in range(60):
        await anyio.lowlevel.checkpoint()


async def idle() -> None:
    await anyio.sleep_forever()


def idlers(count: int) -> list[ChildSpec]:
    return [ChildSpec(f"{n}", idle) for n in range(count)]


class Crowd:
    """Children that all end at once, once."""

    def __init__(self, well: bool = False) -> None:
        self.signal = anyio.Event()
        self.starts = 0
        self.running = 0
        self.well = well

    async def run(self) -> None:
        self.starts += 1
        self.running += 1
        try:
            if self.signal.is_set():
                await anyio.sleep_forever()
            await self.signal.wait()
            if not self.well:
                raise ValueError
        finally:
            self.running -= 1

    def specs(self, count: int, **fields: Any) -> list[ChildSpec]:
        return [ChildSpec(f"{n}", self.run, **fields) for n in range(count)]


# -- costs that grow with the number of children, and no faster ---------------------------


async def start_and_stop(count: int) -> None:
    async with Supervisor(idlers(count), **QUIET) as supervisor:
        await settle()
        assert supervisor.count_children().active == count


async def crash_all(count: int, **options: Any) -> None:
    crowd = Crowd()
    async with Supervisor(crowd.specs(count), **QUIET, **options) as supervisor:
        await settle()
        crowd.signal.set()
        await anyio.sleep(100)
        assert supervisor.count_children().active == crowd.running == count
        assert crowd.starts == 2 * count
    assert crowd.running == 0


async def crash_a_group(count: int) -> None:
    await crash_all(count, strategy=Strategy.ONE_FOR_ALL)


async def crash_all_and_wait(count: int) -> None:
    await crash_all(count, backoff=Backoff())


async def give_up(count: int) -> None:
    crowd = Crowd()
    with pytest.raises(MaxRestartsError):
        async with Supervisor(crowd.specs(count), subscribers=[], max_restarts=0):
            await settle()
            crowd.signal.set()
            await anyio.sleep(100)
    assert crowd.running == 0


async def shut_itself_down(count: int) -> None:
    crowd = Crowd(well=True)
    children = crowd.specs(count, restart=Restart.TEMPORARY, significant=True)
    policy = AutoShutdown.ALL_SIGNIFICANT
    async with Supervisor(children, auto_shutdown=policy, **QUIET) as supervisor:
        await settle()
        crowd.signal.set()
        await supervisor.wait()
    assert crowd.starts == count


async def terminate_and_restart_each(count: int) -> None:
    async with Supervisor(idlers(count), **QUIET) as supervisor:
        for n in range(count):
            await supervisor.terminate_child(f"{n}")
            await supervisor.restart_child(f"{n}")
            assert supervisor.which_child(f"{n}").restarts == 1


async def start_dynamically(count: int) -> None:
    async with DynamicSupervisor(**QUIET) as supervisor:
        for spec in idlers(count):
            await supervisor.start_child(spec)
        assert supervisor.count_children().active == count


async def start_and_terminate_dynamically(count: int) -> None:
    async with DynamicSupervisor(**QUIET) as supervisor:
        infos = [await supervisor.start_child(spec) for spec in idlers(count)]
        for info in infos:
            await supervisor.terminate_child(info)
        assert supervisor.count_children().specs == 0


async def crash_all_dynamic(count: int) -> None:
    crowd = Crowd()
    async with DynamicSupervisor(**QUIET) as supervisor:
        for spec in crowd.specs(count):
            await supervisor.start_child(spec)
        await settle()
        crowd.signal.set()
        await anyio.sleep(100)
        assert crowd.starts == 2 * count
        assert supervisor.count_children().active == crowd.running == count
    assert crowd.running == 0


@both_loops
@pytest.mark.parametrize(
    "scenario",
    [
        start_and_stop,
        crash_all,
        crash_a_group,
        crash_all_and_wait,
        give_up,
        shut_itself_down,
        terminate_and_restart_each,
        start_dynamically,
        start_and_terminate_dynamically,
        crash_all_dynamic,
    ],
)
def test_four_times_as_many_children_cost_about_four_times_as_much(
    backend: str, scenario: Callable[[int], Awaitable[None]]
) -> None:
    counts = []
    for size in (60, 240):
        with Calls() as calls:
            testing.run(scenario, size, backend=backend)
        counts.append(calls.count)

    assert counts[1] < 5 * counts[0]


# -- costs that do not grow at all --------------------------------------------------------


class Crasher:
    """A child that crashes when told."""

    cue: anyio.Event

    async def run(self) -> None:
        self.cue = anyio.Event()
        await self.cue.wait()
        raise ValueError

    async def cost(self) -> int:
        """What ten restarts of it cost."""
        with Calls() as calls:
            for _ in range(10):
                self.cue.set()
                await settle()
        return calls.count


async def restart_among(others: int) -> int:
    crasher = Crasher()
    async with Supervisor([ChildSpec("x", crasher.run), *idlers(others)], **QUIET) as supervisor:
        await settle()
        cost = await crasher.cost()
        assert supervisor.which_child("x").restarts == 10
    return cost


async def restart_dynamically_among(others: int) -> int:
    crasher = Crasher()
    async with DynamicSupervisor(**QUIET) as supervisor:
        for spec in idlers(others):
            await supervisor.start_child(spec)
        await supervisor.start_child(crasher.run)
        await settle()
        cost = await crasher.cost()
        assert supervisor.which_children()[0].restarts == 10
    return cost


async def restart_after(others: int) -> int:
    """A restart after so many restarts of others, all within the window of the budget."""
    crasher, crowd = Crasher(), Crowd()
    children = [ChildSpec("x", crasher.run), *crowd.specs(others)]
    async with Supervisor(children, max_seconds=1e9, **QUIET):
        await settle()
        crowd.signal.set()
        await anyio.sleep(100)
        assert crowd.starts == 2 * others
        return await crasher.cost()


async def calls_among(others: int) -> int:
    async with Supervisor(idlers(others), **QUIET) as supervisor:
        await settle()
        with Calls() as calls:
            await supervisor.start_child(ChildSpec("x", idle))
            await settle()
            supervisor.which_child("x")
            await supervisor.terminate_child("x")
            await supervisor.restart_child("x")
            await supervisor.terminate_child("x")
            await supervisor.delete_child("x")
        return calls.count


@both_loops
@pytest.mark.parametrize(
    "scenario", [restart_among, restart_dynamically_among, restart_after, calls_among]
)
def test_what_concerns_one_child_costs_the_same_among_ten_and_among_a_thousand(
    backend: str, scenario: Callable[[int], Awaitable[int]]
) -> None:
    few, many = (testing.run(scenario, others, backend=backend) for others in (10, 1000))

    assert many < 1.1 * few


# -- very many ------------------------------------------------------------------------------


@pytest.mark.heavy
@both_loops
def test_ten_thousand_children_start_in_order_and_stop_in_reverse(backend: str) -> None:
    log: list[str] = []

    async def run(name: str) -> None:
        log.append(name)
        try:
            await anyio.sleep_forever()
        finally:
            log.append(name)

    names = [f"{n}" for n in range(10_000)]

    async def main() -> None:
        children = [ChildSpec(name, run, (name,)) for name in names]
        async with Supervisor(children, **QUIET) as supervisor:
            await settle()
            assert supervisor.count_children().active == len(names)
            assert len(supervisor.tree().children) == len(names)

    testing.run(main, backend=backend)

    assert log == [*names, *reversed(names)]


@pytest.mark.heavy
@both_loops
def test_twenty_thousand_dynamic_children_start_and_stop(backend: str) -> None:
    crowd = Crowd()

    async def main() -> None:
        async with DynamicSupervisor(**QUIET) as supervisor:
            for _ in range(20_000):
                await supervisor.start_child(crowd.run)
            await settle()
            assert crowd.running == supervisor.count_children().active == 20_000

    testing.run(main, backend=backend)

    assert crowd.running == 0
