"""PartitionSupervisor: routing by key, and resizing. In virtual time."""

from __future__ import annotations

import functools
import os
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from anyio.abc import TaskStatus

from backplane.supervisor import (
    ChildNotFoundError,
    ChildSpec,
    ChildState,
    DynamicSupervisor,
    MaxRestartsError,
    NotRunningError,
    PartitionSupervisor,
    Restart,
    SpecError,
    StartError,
    Strategy,
)

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.parametrize("anyio_backend", ["virtual asyncio", "virtual trio"], indirect=True),
    pytest.mark.usefixtures("nothing_left"),
]


async def sleeper(*_: object) -> None:
    await anyio.sleep_forever()


def numbered(n: int) -> ChildSpec:
    return ChildSpec("sleeper", sleeper, (n,))


def spec_of(run: Callable[..., Awaitable[None]], n: int) -> ChildSpec:
    return ChildSpec("run", run, (n,))


async def test_there_is_one_partition_for_each_cpu_by_default() -> None:
    async with PartitionSupervisor(lambda _: sleeper) as supervisor:
        assert supervisor.partitions == os.cpu_count()
        assert supervisor.count_children().active == supervisor.partitions


async def test_each_partition_is_made_with_its_number_which_is_its_id() -> None:
    made: list[int] = []

    def make(n: int) -> ChildSpec:
        made.append(n)
        return numbered(n)

    async with PartitionSupervisor(make, 3) as supervisor:
        assert made == [0, 1, 2]
        assert [info.id for info in supervisor.which_children()] == ["2", "1", "0"]
        assert supervisor.tree().kind == "partition"


@pytest.mark.parametrize(("key", "id"), [(0, "0"), (4, "1"), (-4, "1"), (10**30, "1"), (True, "1")])
async def test_a_whole_number_is_routed_by_its_remainder(key: int, id: str) -> None:
    async with PartitionSupervisor(numbered, 3) as supervisor:
        assert supervisor.partition(key).id == id


async def test_other_keys_are_routed_by_their_hash_and_always_alike() -> None:
    async with PartitionSupervisor(numbered, 3) as supervisor:
        for key in ["a", ("b", 1), None, 1.5, frozenset({1})]:
            assert supervisor.partition(key).id == str(hash(key) % 3)
        with pytest.raises(TypeError):
            supervisor.partition([])


async def test_many_keys_are_shared_among_all() -> None:
    async with PartitionSupervisor(numbered, 4) as supervisor:
        ids = {supervisor.partition(f"key {n}").id for n in range(200)}
    assert ids == set("0123")


async def test_a_partition_that_is_a_supervisor_is_the_value_of_its_child() -> None:
    def make(n: int) -> DynamicSupervisor:
        return DynamicSupervisor(name=f"sessions {n}")

    async with PartitionSupervisor(make, 2, name="sessions") as supervisor:
        sessions = supervisor.partition(1).value
        assert isinstance(sessions, DynamicSupervisor)
        assert sessions.name == "sessions 1"
        await sessions.start_child(sleeper)
        assert [line.split(" ", 1)[1] for line in str(supervisor.tree()).splitlines()] == [
            "(partition, running)",
            "0 (dynamic) running",
            "1 (dynamic) running",
            "  └─ sleeper running",
        ]


async def test_a_partition_that_fails_is_restarted_alone() -> None:
    starts: list[int] = []
    go = anyio.Event()

    async def run(n: int) -> None:
        starts.append(n)
        await go.wait()
        if n == 1 and starts.count(1) == 1:
            raise ValueError
        await anyio.sleep_forever()

    make = functools.partial(spec_of, run)
    async with PartitionSupervisor(make, 3, subscribers=()) as supervisor:
        go.set()
        await anyio.sleep(1)
        assert starts == [0, 1, 2, 1]
        assert supervisor.partition(1).restarts == 1


async def test_it_may_have_another_strategy_and_gives_up_like_any_other() -> None:
    starts: list[int] = []

    async def run(n: int) -> None:
        starts.append(n)
        if n == 2:
            await anyio.sleep(1)
            raise ValueError
        await anyio.sleep_forever()

    with pytest.raises(MaxRestartsError):
        async with PartitionSupervisor(
            functools.partial(spec_of, run),
            3,
            strategy=Strategy.ONE_FOR_ALL,
            max_restarts=1,
            subscribers=(),
        ):
            await anyio.sleep(10)
    assert starts == [0, 1, 2, 0, 1, 2]


async def test_it_can_be_made_smaller_and_as_large_as_it_was() -> None:
    async with PartitionSupervisor(numbered, 4) as supervisor:
        await supervisor.resize(2)
        assert supervisor.partitions == 2
        assert {supervisor.partition(n).id for n in range(8)} == {"0", "1"}
        counts = supervisor.count_children()
        assert (counts.specs, counts.active) == (4, 2)

        await supervisor.resize(0)
        with pytest.raises(ChildNotFoundError):
            supervisor.partition(1)

        await supervisor.resize(4)
        assert {supervisor.partition(n).id for n in range(8)} == set("0123")
        assert supervisor.count_children().active == 4
        await supervisor.resize(4)
        assert supervisor.partitions == 4

        await supervisor.resize(1)
    async with supervisor:  # each run begins with all
        assert supervisor.partitions == 4


async def test_a_partition_that_does_not_start_leaves_those_before_it() -> None:
    starts = 0

    async def run(n: int, *, task_status: TaskStatus[None]) -> None:
        nonlocal starts
        starts += 1
        if starts == 4:  # the second start of number 1
            raise ValueError
        task_status.started()
        await anyio.sleep_forever()

    make = functools.partial(spec_of, run)
    async with PartitionSupervisor(make, 2, subscribers=()) as supervisor:
        await supervisor.resize(0)
        with pytest.raises(StartError):
            await supervisor.resize(2)
        assert supervisor.partitions == 1
        assert supervisor.partition(5).state is ChildState.RUNNING
        await supervisor.resize(2)
        assert supervisor.count_children().active == 2


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"partitions": 0}, "partitions must be 1 or more"),
        ({"partitions": -1}, "partitions must be a whole number"),
        ({"partitions": 1.5}, "partitions must be a whole number"),
        ({"make": lambda n: None}, "must be an async function"),
        (
            {
                "make": lambda n: ChildSpec(
                    "a", sleeper, significant=True, restart=Restart.TRANSIENT
                )
            },
            "partition 0 is significant",
        ),
        ({"strategy": "one_for_all"}, "strategy must be of type Strategy"),
        ({"max_restarts": -1}, "max_restarts"),
        ({"zombie_limit": -1}, "zombie_limit"),
    ],
    ids=lambda value: str(value)[:30],
)
async def test_what_makes_no_sense_is_refused(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(SpecError, match=text):
        PartitionSupervisor(**{"make": numbered, **arguments})


async def test_it_cannot_become_larger_than_it_was_made_and_answers_only_while_it_runs() -> None:
    supervisor = PartitionSupervisor(numbered, 2)
    with pytest.raises(NotRunningError):
        supervisor.partition(1)
    async with supervisor:
        with pytest.raises(SpecError, match="made with 2 partitions"):
            await supervisor.resize(3)
        with pytest.raises(SpecError, match="whole number"):
            await supervisor.resize(-1)
    with pytest.raises(NotRunningError):
        await supervisor.resize(1)
