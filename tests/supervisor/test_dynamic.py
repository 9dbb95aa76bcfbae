"""The dynamic supervisor against Elixir's contract, and what it does beyond that."""

# ruff: noqa: PT012 - what raises is the block of a supervisor, and things happen in it

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import pytest
from anyio.abc import TaskStatus

from backplane import (
    Device,
    DeviceID,
    Disconnected,
    Failed,
    Killed,
    Line,
    LinkDownError,
    LinkMode,
    current_device,
)
from backplane.supervisor import (
    BRUTAL_KILL,
    Backoff,
    Budget,
    ChildExited,
    ChildInfo,
    ChildKilled,
    ChildNotFoundError,
    ChildParked,
    ChildRestartingError,
    ChildRunningError,
    ChildSpec,
    ChildStarted,
    ChildStartFailed,
    ChildState,
    ChildUnresponsive,
    ChildWaiting,
    Counts,
    DynamicSupervisor,
    Event,
    Exhausted,
    Ignore,
    MaxChildrenError,
    MaxRestartsError,
    NotRunningError,
    NotStartedError,
    Permanent,
    Restart,
    SelfCallError,
    SpecError,
    StartError,
    StartTimeoutError,
    Supervisor,
    SupervisorError,
    SupervisorGaveUp,
    UnresponsiveError,
    ZombieLimitError,
    alive,
)
from backplane.supervisor._desk import Desk, Timer

if TYPE_CHECKING:  # mypy knows it by another name than pytest
    from supervisor.stage import Stage, now, on_trio, settle
else:
    from .stage import Stage, now, on_trio, settle

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.parametrize("anyio_backend", ["virtual asyncio", "virtual trio"], indirect=True),
]

TEMPORARY, TRANSIENT, PERMANENT = Restart.TEMPORARY, Restart.TRANSIENT, Restart.PERMANENT
PARK, STOP = Exhausted.PARK, Exhausted.STOP
STEADY = Backoff(initial=1, factor=1, maximum=1, jitter=0)


@pytest.fixture
def stage() -> Stage:
    return Stage()


async def forever() -> None:
    await anyio.sleep_forever()


async def starts_never(*, task_status: TaskStatus[None]) -> None:
    await anyio.sleep_forever()


def states(supervisor: DynamicSupervisor) -> dict[str, str]:
    return {info.id: info.state.value for info in reversed(supervisor.which_children())}


def line_of(info: ChildInfo) -> Line:
    assert info.line is not None
    return info.line


def names(events: list[Event]) -> list[str]:
    return [type(event).__name__ for event in events]


# -- starting ----------------------------------------------------------------------


async def test_it_begins_with_no_child_and_runs_on_without_any(stage: Stage) -> None:
    async with DynamicSupervisor() as supervisor:
        assert supervisor.which_children() == []
        assert supervisor.count_children() == Counts(0, 0, 0, 0)
        await supervisor.start_child(stage.child("a", restart=TEMPORARY))
        await settle()
        await stage.end("a")
        await anyio.sleep(1000)
        assert repr(supervisor) == "<DynamicSupervisor 'dynamic' running>"
        assert str(supervisor.tree()) == "dynamic (dynamic, running)"


async def test_start_child_returns_when_the_child_has_started(stage: Stage) -> None:
    async with DynamicSupervisor() as supervisor:
        info = await supervisor.start_child(stage.starter("a", 3))
        assert now() == 3
        assert (info.id, info.state, info.value) == ("a", ChildState.RUNNING, "value of a")
        assert info.key == line_of(info).id
        assert info.restarts == 0
        plain = await supervisor.start_child(stage.child("b"))
        assert plain.state is ChildState.RUNNING
        assert now() == 3
        assert [child.key for child in supervisor.which_children()] == [plain.key, info.key]


async def test_an_async_function_or_a_supervisor_may_stand_for_a_specification() -> None:
    inner = Supervisor([forever], name="inner")
    async with DynamicSupervisor(name="top") as supervisor:
        worker = await supervisor.start_child(forever)
        below = await supervisor.start_child(inner)
        assert (worker.id, worker.is_supervisor) == ("forever", False)
        assert (below.id, below.is_supervisor, below.value) == ("inner", True, inner)
        assert supervisor.count_children() == Counts(2, 2, 1, 1)
        assert str(supervisor.tree()).splitlines() == [
            "top (dynamic, running)",
            "├─ forever running",
            "└─ inner (one_for_one) running",
            "   └─ forever running",
        ]


async def test_ids_need_not_be_unique(stage: Stage) -> None:
    async with DynamicSupervisor() as supervisor:
        infos = [await supervisor.start_child(stage.child("a")) for _ in range(3)]
        await settle()
        assert len({info.key for info in infos}) == 3
        await supervisor.terminate_child(infos[1])
        assert [info.key for info in supervisor.which_children()] == [infos[2].key, infos[0].key]
        assert stage.log == ["+a", "+a", "+a", "-a"]


async def test_arguments_are_put_before_those_of_each_child_at_each_start() -> None:
    calls: list[Any] = []

    async def run(*args: Any, **kwargs: Any) -> None:
        calls.append((args, kwargs))
        if len(calls) == 1:
            raise ValueError
        await anyio.sleep_forever()

    async with DynamicSupervisor(args=(1, 2)) as supervisor:
        await supervisor.start_child(ChildSpec("a", run, (3,), kwargs={"key": 4}))
        await settle()
        await supervisor.start_child(run)
        await settle()
    assert calls == [((1, 2, 3), {"key": 4})] * 2 + [((1, 2), {})]


async def test_a_slow_start_holds_up_nobody(stage: Stage, call: Any) -> None:
    async with DynamicSupervisor() as supervisor, anyio.create_task_group() as tg:
        other = await supervisor.start_child(stage.child("other"))
        crasher = await supervisor.start_child(stage.child("crasher"))
        await settle()
        slow = call(supervisor.start_child, stage.starter("slow", 10))
        tg.start_soon(slow)
        await settle()
        assert states(supervisor)["slow"] == "starting"

        await stage.crash("crasher")
        await supervisor.start_child(stage.starter("quick", 1))
        await supervisor.terminate_child(other)

        assert now() == 1
        assert not slow.over
        assert states(supervisor) == {"crasher": "running", "slow": "starting", "quick": "running"}
        assert supervisor.count_children() == Counts(3, 3, 0, 3)
        assert [info.restarts for info in supervisor.which_children() if info.key == crasher.key]
        await slow.wait()
        assert slow.value.value == "value of slow"
        assert now() == 10


async def test_any_number_start_at_the_same_time(stage: Stage) -> None:
    async with DynamicSupervisor() as supervisor:
        async with anyio.create_task_group() as tg:
            for n in range(100):
                tg.start_soon(supervisor.start_child, stage.starter(f"{n}", 5))
        assert now() == 5
        assert supervisor.count_children().active == 100


async def test_a_first_start_that_fails_is_not_kept_and_spends_nothing(stage: Stage) -> None:
    error = OSError("no such host")
    events: list[Event] = []
    async with DynamicSupervisor(
        name="top", max_children=1, max_restarts=0, subscribers=[events.append]
    ) as supervisor:
        for _ in range(5):
            stage.fails["a"] = [error]
            with pytest.raises(StartError, match="child 'a' of supervisor 'top'") as caught:
                await supervisor.start_child(stage.starter("a", 1))
            assert caught.value.__cause__ is error
            assert supervisor.which_children() == []
        await supervisor.start_child(stage.starter("a"))
    assert now() == 5
    assert names(events) == ["ChildStartFailed"] * 5 + ["ChildStarted", "ChildExited"]


async def test_a_child_that_returns_before_it_has_started_has_failed_to_start() -> None:
    async def returns(*, task_status: TaskStatus[None]) -> None: ...

    async with DynamicSupervisor() as supervisor:
        with pytest.raises(StartError) as caught:
            await supervisor.start_child(ChildSpec("a", returns, restart=TEMPORARY))
        assert isinstance(caught.value.__cause__, NotStartedError)
        assert supervisor.which_children() == []


async def test_a_start_that_says_that_it_can_never_succeed_is_a_failed_start_and_no_more(
    stage: Stage,
) -> None:
    stage.fails["a"] = [Permanent("no such table")]
    async with DynamicSupervisor() as supervisor:
        with pytest.raises(StartError) as caught:
            await supervisor.start_child(stage.starter("a"))
        assert isinstance(caught.value.__cause__, Permanent)
        await supervisor.start_child(stage.starter("a"))


async def test_a_first_start_that_takes_too_long_has_failed(stage: Stage) -> None:
    async with DynamicSupervisor(max_restarts=0) as supervisor:
        with pytest.raises(StartError) as caught:
            await supervisor.start_child(stage.starter("a", 10, start_timeout=3))
        assert isinstance(caught.value.__cause__, StartTimeoutError)
        assert now() == 3
        assert stage.log == ["+a", "-a"]
        assert supervisor.which_children() == []
        await anyio.sleep(100)


async def test_a_start_that_comes_just_in_time_stays(stage: Stage) -> None:
    async with DynamicSupervisor() as supervisor:
        await supervisor.start_child(stage.starter("a", 2, start_timeout=3))
        await anyio.sleep(10)
        assert states(supervisor) == {"a": "running"}
        await stage.crash("a")
        await anyio.sleep(10)
        assert states(supervisor) == {"a": "running"}
        assert stage.log == ["+a", "-a", "+a"]


@pytest.mark.parametrize(("shutdown", "end"), [(2.0, 5), (BRUTAL_KILL, 3), (math.inf, 103)])
async def test_a_late_start_that_does_not_end_is_killed_after_its_grace(
    shutdown: Any, end: float
) -> None:
    async def late(*, task_status: TaskStatus[None]) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=shutdown is not BRUTAL_KILL):
                await anyio.sleep(100)
                task_status.started()  # which nobody takes notice of any more

    events: list[Event] = []
    async with DynamicSupervisor(max_restarts=0, subscribers=[events.append]) as supervisor:
        with pytest.raises(StartError) as caught:
            await supervisor.start_child(ChildSpec("a", late, start_timeout=3, shutdown=shutdown))
        assert now() == end
        assert isinstance(caught.value.__cause__, StartTimeoutError)
        assert supervisor.which_children() == []
        assert names(events).count("ChildKilled") == (shutdown != math.inf)
        assert names(events)[-1] == "ChildStartFailed"
        assert "ChildStarted" not in names(events)


async def test_a_child_that_has_nothing_to_do_is_not_kept(stage: Stage) -> None:
    stage.fails["a"] = [Ignore()]
    events: list[Event] = []
    async with DynamicSupervisor(max_children=1, subscribers=[events.append]) as supervisor:
        info = await supervisor.start_child(stage.starter("a", 1))
        assert info.state is ChildState.STOPPED
        assert info.value is None
        assert supervisor.which_children() == []
        with pytest.raises(ChildNotFoundError):
            await supervisor.terminate_child(info)
        await supervisor.start_child(stage.child("b"))
    assert names(events[:2]) == ["ChildExited", "ChildStarted"]


async def test_a_restart_that_has_nothing_to_do_leaves_no_entry(stage: Stage) -> None:
    async with DynamicSupervisor(max_children=1) as supervisor:
        await supervisor.start_child(stage.starter("a"))
        await settle()
        stage.fails["a"] = [Ignore()]
        await stage.crash("a")
        assert supervisor.count_children() == Counts(0, 0, 0, 0)
        await supervisor.start_child(stage.child("b"))


async def test_what_makes_no_sense_is_refused_and_starts_nothing(stage: Stage) -> None:
    bad: list[dict[str, Any]] = [
        {"max_children": -1},
        {"max_children": 1.5},
        {"max_children": True},
        {"args": [1]},
        {"max_restarts": -1},
        {"name": ""},
        {"subscribers": [None]},
    ]
    for settings in bad:
        with pytest.raises(SpecError):
            DynamicSupervisor(**settings)
    async with DynamicSupervisor() as supervisor:
        with pytest.raises(SpecError, match="significant"):
            await supervisor.start_child(stage.child("a", restart=TRANSIENT, significant=True))
        with pytest.raises(SpecError):
            await supervisor.start_child(lambda: None)  # type: ignore[arg-type,return-value]
        assert supervisor.which_children() == []
    assert stage.log == []


# -- max_children ------------------------------------------------------------------


async def test_there_are_never_more_children_than_may_be(stage: Stage) -> None:
    async with DynamicSupervisor(max_children=2, name="top") as supervisor:
        first = await supervisor.start_child(stage.child("a"))
        await supervisor.start_child(stage.child("b"))
        await settle()
        with pytest.raises(MaxChildrenError, match="'top' has its maximum of 2") as caught:
            await supervisor.start_child(stage.child("c"))
        assert (caught.value.supervisor, caught.value.limit) == ("top", 2)
        assert stage.new() == ["+a", "+b"]
        await supervisor.terminate_child(first)
        await supervisor.start_child(stage.child("c"))
        await settle()
        assert stage.new() == ["-a", "+c"]


async def test_a_supervisor_of_no_children_starts_none(stage: Stage) -> None:
    async with DynamicSupervisor(max_children=0) as supervisor:
        with pytest.raises(MaxChildrenError):
            await supervisor.start_child(stage.child("a"))
    assert stage.log == []


async def test_children_that_start_wait_or_are_parked_count_among_those_that_may_be(
    stage: Stage, call: Any
) -> None:
    async with (
        DynamicSupervisor(max_children=3, backoff=STEADY) as supervisor,
        anyio.create_task_group() as tg,
    ):
        tg.start_soon(call(supervisor.start_child, stage.starter("starting", 10)))
        await supervisor.start_child(stage.child("waiting"))
        await supervisor.start_child(stage.child("parked", budget=Budget(0, 1), exhausted=PARK))
        await settle()
        await stage.crash("waiting")
        await stage.crash("parked")
        assert states(supervisor) == {
            "starting": "starting",
            "waiting": "waiting",
            "parked": "parked",
        }
        assert supervisor.count_children() == Counts(3, 1, 0, 3)
        with pytest.raises(MaxChildrenError):
            await supervisor.start_child(stage.child("d"))


async def test_starts_at_once_get_no_further_than_one_by_one(stage: Stage) -> None:
    refused = 0

    async with DynamicSupervisor(max_children=3) as supervisor:

        async def start() -> None:
            nonlocal refused
            try:
                await supervisor.start_child(stage.starter("a", 1))
            except MaxChildrenError:
                refused += 1

        async with anyio.create_task_group() as tg:
            for _ in range(10):
                tg.start_soon(start)
        assert refused == 7
        assert supervisor.count_children().active == 3


# -- ends and restarts -------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "after_end", "after_crash"),
    [(PERMANENT, True, True), (TRANSIENT, False, True), (TEMPORARY, False, False)],
)
async def test_the_restart_type_says_who_is_started_again_and_the_others_are_forgotten(
    stage: Stage, kind: Restart, after_end: bool, after_crash: bool
) -> None:
    for how, again in ((stage.end, after_end), (stage.crash, after_crash)):
        async with DynamicSupervisor() as supervisor:
            other = await supervisor.start_child(stage.child("other"))
            info = await supervisor.start_child(stage.child("a", restart=kind))
            await settle()
            stage.new()
            await how("a")
            assert stage.new() == ["-a", "+a"][: 1 + again]
            keys = [child.key for child in supervisor.which_children()]
            assert keys == ([info.key, other.key] if again else [other.key])


async def test_a_restart_leaves_the_others_alone_and_keeps_the_place(stage: Stage) -> None:
    async with DynamicSupervisor() as supervisor:
        for name in "abc":
            await supervisor.start_child(stage.child(name))
        await settle()
        stage.new()
        before = {info.id: info for info in supervisor.which_children()}
        await stage.crash("b")
        assert stage.new() == ["-b", "+b"]
        after = {info.id: info for info in supervisor.which_children()}
        assert list(after) == ["c", "b", "a"]
        assert after["b"].key == before["b"].key
        assert after["b"].line != before["b"].line
        assert after["b"].restarts == 1
        assert after["a"].line == before["a"].line


@pytest.mark.parametrize("seconds", [1.0, 0.0])
async def test_three_restarts_in_five_seconds_are_allowed_to_all_together(
    stage: Stage, seconds: float
) -> None:
    with pytest.raises(MaxRestartsError) as caught:
        async with DynamicSupervisor() as supervisor:
            for name in "abcd":
                await supervisor.start_child(stage.child(name))
            await supervisor.start_child(stage.slow("slow", 2))
            await settle()
            for name in "abcd":
                await stage.crash(name)
                await anyio.sleep(seconds)
            await anyio.sleep_forever()
    assert (caught.value.supervisor, caught.value.child) == ("dynamic", "d")
    assert isinstance(caught.value.__cause__, ValueError)
    assert sorted(stage.log) == sorted(["+a", "-a", "+b", "-b", "+c", "-c"] * 2 + ["+d", "-d"]
        + ["+slow", "-slow"])  # fmt: skip
    assert now() == 3 * seconds + 2


async def test_restarts_that_are_far_apart_go_on_for_ever(stage: Stage) -> None:
    async with DynamicSupervisor() as supervisor:
        info = await supervisor.start_child(stage.child("a"))
        for _ in range(20):
            await settle()
            await stage.crash("a")
            await anyio.sleep(1.7)
        assert [(i.key, i.restarts) for i in supervisor.which_children()] == [(info.key, 20)]


async def test_a_child_with_a_budget_of_its_own_does_not_spend_the_others(stage: Stage) -> None:
    with pytest.raises(MaxRestartsError, match="more than 2 restarts within 10 s"):
        async with DynamicSupervisor(max_restarts=0) as supervisor:
            await supervisor.start_child(stage.child("a", budget=Budget(2, 10)))
            await supervisor.start_child(stage.child("b", budget=Budget(2, 10)))
            await settle()
            for name in "abab":
                await stage.crash(name)
            assert supervisor.count_children().active == 2
            await stage.crash("a")
            await anyio.sleep_forever()


async def test_each_child_of_one_specification_has_a_budget_of_its_own(stage: Stage) -> None:
    spec = stage.child("a", budget=Budget(1, 10), exhausted=PARK)
    async with DynamicSupervisor(max_restarts=0) as supervisor:
        for _ in range(3):
            await supervisor.start_child(spec)
            await settle()
            await stage.crash("a")
        assert [info.restarts for info in supervisor.which_children()] == [1, 1, 1]
        assert supervisor.count_children().active == 3


async def test_a_failed_restart_is_tried_again_at_once_and_each_try_is_counted(
    stage: Stage,
) -> None:
    events: list[Event] = []
    stage.fails["a"] = []
    with pytest.raises(MaxRestartsError):
        async with DynamicSupervisor(subscribers=[events.append]) as supervisor:
            await supervisor.start_child(stage.starter("a"))
            await settle()
            stage.fails["a"] = [OSError()] * 10
            await stage.crash("a")
            await anyio.sleep_forever()
    assert stage.log == ["+a", "-a"] * 4
    assert now() == 0
    assert len([event for event in events if isinstance(event, ChildStartFailed)]) == 3
    assert names(events)[-1] == "SupervisorGaveUp"


async def test_a_failed_restart_that_succeeds_in_the_end_has_spent_what_it_took(
    stage: Stage,
) -> None:
    async with DynamicSupervisor(max_restarts=3) as supervisor:
        info = await supervisor.start_child(stage.starter("a"))
        await settle()
        stage.fails["a"] = [OSError()] * 2
        await stage.crash("a")
        assert [(i.key, i.restarts) for i in supervisor.which_children()] == [(info.key, 3)]
        assert states(supervisor) == {"a": "running"}


async def test_a_restart_that_takes_too_long_has_failed_and_is_tried_again(stage: Stage) -> None:
    lives = 0
    events: list[Event] = []

    async def run(*, task_status: TaskStatus[None]) -> None:
        nonlocal lives
        lives += 1
        if lives in (2, 3):
            await anyio.sleep(100)
        task_status.started()
        if lives == 1:
            raise ValueError
        await anyio.sleep_forever()

    async with DynamicSupervisor(subscribers=[events.append]) as supervisor:
        await supervisor.start_child(ChildSpec("a", run, start_timeout=4))
        await anyio.sleep(3)
        assert states(supervisor) == {"a": "starting"}
        await anyio.sleep(2)
        assert states(supervisor) == {"a": "starting"}
        await anyio.sleep(4)
        assert states(supervisor) == {"a": "running"}
        assert lives == 4
        assert supervisor.which_children()[0].restarts == 3
    failed = [event.reason for event in events if isinstance(event, ChildStartFailed)]
    assert [type(reason) for reason in failed] == [StartTimeoutError] * 2


async def test_a_supervisor_gives_up_also_over_a_late_restart_that_has_to_be_killed() -> None:
    lives = 0

    async def run(*, task_status: TaskStatus[None]) -> None:
        nonlocal lives
        lives += 1
        if lives == 1:
            task_status.started()
            raise ValueError
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(100)

    with pytest.raises(MaxRestartsError) as caught:
        async with DynamicSupervisor(max_restarts=1) as supervisor:
            await supervisor.start_child(ChildSpec("a", run, start_timeout=2, shutdown=1))
            await anyio.sleep(1000)
    assert isinstance(caught.value.__cause__, StartTimeoutError)
    assert now() == 3


async def test_a_late_restart_that_has_to_be_killed_is_tried_again() -> None:
    lives = 0

    async def run(*, task_status: TaskStatus[None]) -> None:
        nonlocal lives
        lives += 1
        if lives != 2:
            task_status.started()
            if lives == 1:
                raise ValueError
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=lives == 2):
                await anyio.sleep(100)

    async with DynamicSupervisor() as supervisor:
        await supervisor.start_child(ChildSpec("a", run, start_timeout=2, shutdown=1))
        await anyio.sleep(2.5)
        assert states(supervisor) == {"a": "stopping"}
        await anyio.sleep(1)
        assert states(supervisor) == {"a": "running"}
        assert lives == 3


async def test_children_wait_beside_each_other_before_their_restarts(stage: Stage) -> None:
    events: list[Event] = []
    double = Backoff(initial=1, factor=2, maximum=10, jitter=0)
    async with DynamicSupervisor(
        backoff=double, max_restarts=10, subscribers=[events.append]
    ) as supervisor:
        info = await supervisor.start_child(stage.child("a"))
        await supervisor.start_child(stage.child("b"))
        await supervisor.start_child(stage.child("own", backoff=STEADY))
        await settle()
        await stage.crash("a")
        assert states(supervisor) == {"a": "waiting", "b": "running", "own": "running"}
        await anyio.sleep(0.5)
        await stage.crash("b")
        await anyio.sleep(0.6)
        assert states(supervisor) == {"a": "running", "b": "waiting", "own": "running"}
        await anyio.sleep(0.5)
        assert supervisor.count_children() == Counts(3, 3, 0, 3)
        for _ in range(2):
            await stage.crash("a")
            await stage.crash("own")
            await anyio.sleep(1.1)
            assert states(supervisor)["own"] == "running"
            assert states(supervisor)["a"] == "waiting"
            await anyio.sleep(3)
        assert supervisor.which_children()[-1].key == info.key
    waits = [(e.child, e.delay, e.attempt) for e in events if isinstance(e, ChildWaiting)]
    assert [wait for wait in waits if wait[0] == "a"] == [("a", 1, 1), ("a", 2, 2), ("a", 4, 3)]
    assert [wait for wait in waits if wait[0] == "own"] == [("own", 1, 1), ("own", 1, 2)]


async def test_a_failed_restart_waits_too(stage: Stage) -> None:
    async with DynamicSupervisor(backoff=STEADY) as supervisor:
        await supervisor.start_child(stage.starter("a"))
        await settle()
        stage.fails["a"] = [OSError()]
        await stage.crash("a")
        await anyio.sleep(1.5)
        assert states(supervisor) == {"a": "waiting"}
        assert stage.new() == ["+a", "-a"] * 2
        await anyio.sleep(1)
        assert stage.new() == ["+a"]


async def test_a_supervisor_that_stops_when_its_budget_is_spent_ends_well(stage: Stage) -> None:
    events: list[Event] = []
    supervisor = DynamicSupervisor(max_restarts=0, exhausted=STOP, subscribers=[events.append])
    async with anyio.create_task_group() as tg:
        await tg.start(supervisor.run)
        await supervisor.start_child(stage.child("a"))
        await supervisor.start_child(stage.child("b"))
        await settle()
        await stage.crash("a")
    assert stage.log == ["+a", "+b", "-a", "-b"]
    assert names(events) == ["ChildStarted"] * 2 + [
        "ChildExited",
        "SupervisorGaveUp",
        "ChildExited",
    ]


async def test_a_fault_that_a_restart_cannot_mend_is_not_tried_again(stage: Stage) -> None:
    with pytest.raises(MaxRestartsError, match="cannot mend"):
        async with DynamicSupervisor() as supervisor:
            await supervisor.start_child(stage.child("a"))
            await settle()
            await stage.crash("a", Permanent("no such table"))
            await anyio.sleep_forever()
    assert stage.log == ["+a", "-a"]


async def test_a_restart_that_says_that_it_can_never_succeed_is_not_tried_again(
    stage: Stage,
) -> None:
    async with DynamicSupervisor(exhausted=PARK) as supervisor:
        await supervisor.start_child(stage.starter("a"))
        await settle()
        stage.fails["a"] = [Permanent()]
        await stage.crash("a")
        assert states(supervisor) == {"a": "parked"}
        assert stage.log == ["+a", "-a"] * 2


# -- parked children ---------------------------------------------------------------


async def test_a_parked_child_can_be_started_again(stage: Stage) -> None:
    events: list[Event] = []
    async with DynamicSupervisor(
        max_restarts=0, exhausted=PARK, subscribers=[events.append]
    ) as supervisor:
        info = await supervisor.start_child(stage.starter("a", 1))
        await settle()
        await stage.crash("a")
        assert states(supervisor) == {"a": "parked"}
        await anyio.sleep(100)
        again = await supervisor.restart_child(info)
        assert now() == 102
        assert (again.key, again.state, again.restarts) == (info.key, ChildState.RUNNING, 1)
        assert again.value == "value of a"
        assert again.line != info.line
        with pytest.raises(ChildRunningError):
            await supervisor.restart_child(info)
    assert len([event for event in events if isinstance(event, ChildParked)]) == 1


async def test_a_parked_child_whose_start_fails_again_stays_parked(stage: Stage) -> None:
    async with DynamicSupervisor(max_restarts=0, exhausted=PARK) as supervisor:
        info = await supervisor.start_child(stage.starter("a"))
        await settle()
        await stage.crash("a")
        stage.fails["a"] = [OSError()]
        with pytest.raises(StartError):
            await supervisor.restart_child(info)
        await settle()
        assert states(supervisor) == {"a": "parked"}
        stage.fails["a"] = [Ignore()]
        assert (await supervisor.restart_child(info)).state is ChildState.STOPPED
        with pytest.raises(ChildNotFoundError):
            await supervisor.restart_child(info)


async def test_a_parked_child_without_a_start_to_wait_for_is_started_again(stage: Stage) -> None:
    async with DynamicSupervisor(max_restarts=0, exhausted=PARK) as supervisor:
        info = await supervisor.start_child(stage.child("a"))
        await settle()
        await stage.crash("a")
        assert (await supervisor.restart_child(info)).state is ChildState.RUNNING
        await settle()
        assert stage.log == ["+a", "-a", "+a"]


async def test_restart_child_wants_a_child_that_is_parked(stage: Stage, call: Any) -> None:
    async with DynamicSupervisor(backoff=STEADY) as supervisor, anyio.create_task_group() as tg:
        waiting = await supervisor.start_child(stage.child("a"))
        stopping = await supervisor.start_child(stage.slow("b", 2))
        await settle()
        await stage.crash("a")
        tg.start_soon(supervisor.terminate_child, stopping)
        await settle()
        with pytest.raises(ChildRestartingError):
            await supervisor.restart_child(waiting)
        with pytest.raises(ChildRunningError):
            await supervisor.restart_child(stopping)


async def test_a_parked_child_is_started_once_however_many_ask(stage: Stage, call: Any) -> None:
    async with (
        DynamicSupervisor(max_restarts=0, exhausted=PARK) as supervisor,
        anyio.create_task_group() as tg,
    ):
        info = await supervisor.start_child(stage.starter("a", 1))
        await settle()
        await stage.crash("a")
        calls = [call(supervisor.restart_child, info) for _ in range(3)]
        for each in calls:
            tg.start_soon(each)
        for each in calls:
            await each.wait()
        errors = [type(each.error) for each in calls if each.error is not None]
        assert errors == [ChildRunningError] * 2
        assert stage.log == ["+a", "-a", "+a"]


@pytest.mark.parametrize("first", ["terminate", "restart"])
async def test_a_child_that_is_terminated_and_restarted_at_once_is_never_lost_sight_of(
    stage: Stage, call: Any, first: str
) -> None:
    async with DynamicSupervisor(max_restarts=0, exhausted=PARK) as supervisor:
        info = await supervisor.start_child(stage.child("a"))
        await settle()
        await stage.crash("a")
        # As requests of one turn; the supervisor serves them in the order of the calls.
        engine = supervisor._running("test")
        calls = [call(supervisor.terminate_child, info), call(supervisor.restart_child, info)]
        if first == "restart":
            calls.reverse()
        async with anyio.create_task_group() as tg:
            for each in calls:
                tg.start_soon(each)
        await settle()
        running = stage.log.count("+a") - stage.log.count("-a")
        assert supervisor.count_children().active == running
        assert len(engine.children) == running
    await settle()
    assert stage.log.count("+a") == stage.log.count("-a")


# -- terminating -------------------------------------------------------------------


async def test_terminate_child_waits_for_the_end_forgets_and_never_restarts(
    stage: Stage,
) -> None:
    async with DynamicSupervisor(max_restarts=0) as supervisor:
        info = await supervisor.start_child(stage.slow("a", 2))
        await settle()
        await supervisor.terminate_child(info)
        assert now() == 2
        assert stage.log == ["+a", "-a"]
        assert supervisor.which_children() == []
        with pytest.raises(ChildNotFoundError, match="has no child 'a'"):
            await supervisor.terminate_child(info)
        with pytest.raises(ChildNotFoundError):
            await supervisor.terminate_child(line_of(info))


async def test_a_child_is_addressed_by_what_is_known_of_it(stage: Stage) -> None:
    ways: list[Callable[[ChildInfo], ChildInfo | Line | DeviceID]] = [
        lambda info: info,
        line_of,
        lambda info: line_of(info).id,
    ]
    for way in ways:
        async with DynamicSupervisor() as supervisor:
            await supervisor.start_child(stage.child("b"))
            info = await supervisor.start_child(stage.child("a"))
            await supervisor.terminate_child(way(info))
            assert states(supervisor) == {"b": "running"}


async def test_an_info_means_the_child_through_all_its_restarts_but_a_line_one_life(
    stage: Stage,
) -> None:
    async with DynamicSupervisor(max_restarts=10) as supervisor:
        first = await supervisor.start_child(stage.child("a"))
        for _ in range(2):
            await settle()
            await stage.crash("a")
        (third,) = supervisor.which_children()
        for old in (line_of(first), line_of(first).id, first.key):
            assert not isinstance(old, str)
            with pytest.raises(ChildNotFoundError):
                await supervisor.terminate_child(old)
        assert supervisor.count_children().active == 1
        await supervisor.terminate_child(line_of(third).id)
        assert supervisor.which_children() == []

        first = await supervisor.start_child(stage.child("a"))
        await settle()
        await stage.crash("a")
        await supervisor.terminate_child(first)
        assert supervisor.which_children() == []


async def test_a_child_that_waits_is_terminated_under_the_line_of_its_last_life(
    stage: Stage,
) -> None:
    for times in (1, 2):
        async with DynamicSupervisor(backoff=STEADY) as supervisor:
            await supervisor.start_child(stage.child("a"))
            await settle()
            for _ in range(times - 1):
                await stage.crash("a")
                await anyio.sleep(1.1)
            (info,) = supervisor.which_children()
            await stage.crash("a")
            assert states(supervisor) == {"a": "waiting"}
            await supervisor.terminate_child(line_of(info))
            assert supervisor.which_children() == []
            stage.new()
            await anyio.sleep(10)
            assert stage.log == []


async def test_who_asks_for_the_end_of_one_life_never_ends_the_next(stage: Stage) -> None:
    async with DynamicSupervisor() as supervisor:
        info = await supervisor.start_child(stage.child("a"))
        await settle()
        witness = Device()
        witness.link(line_of(info), LinkMode.MONITOR)
        stage.give_cue("a", ValueError())
        message = await witness.receive()
        assert isinstance(message, Disconnected)
        with pytest.raises(ChildNotFoundError):
            await supervisor.terminate_child(message.sender)
        await settle()
        assert [info.restarts for info in supervisor.which_children()] == [1]
        assert stage.log == ["+a", "-a", "+a"]


async def test_strangers_are_not_found(stage: Stage) -> None:
    async with DynamicSupervisor() as supervisor, DynamicSupervisor() as other:
        theirs = await other.start_child(stage.child("a"))
        device = Device()
        for stranger in (theirs, theirs.line, device.line(), device.id):
            assert stranger is not None
            with pytest.raises(ChildNotFoundError):
                await supervisor.terminate_child(stranger)
        async with Supervisor([stage.child("a")]) as static:
            with pytest.raises(ChildNotFoundError):
                await supervisor.terminate_child(static.which_child("a"))
            with pytest.raises(ChildNotFoundError):
                await supervisor.restart_child(static.which_child("a"))


async def test_a_parked_child_is_terminated(stage: Stage) -> None:
    async with DynamicSupervisor(max_restarts=0, exhausted=PARK) as supervisor:
        info = await supervisor.start_child(stage.child("a"))
        await settle()
        await stage.crash("a")
        await supervisor.terminate_child(line_of(info))
        assert supervisor.which_children() == []


async def test_a_child_that_starts_can_be_terminated_and_its_start_has_failed(
    stage: Stage, call: Any
) -> None:
    async with DynamicSupervisor() as supervisor, anyio.create_task_group() as tg:
        start = call(supervisor.start_child, stage.starter("a", 100))
        tg.start_soon(start)
        await settle()
        (info,) = supervisor.which_children()
        await supervisor.terminate_child(info)
        await start.wait()
        assert isinstance(start.error, StartError)
        assert supervisor.which_children() == []
        assert stage.log == ["+a", "-a"]
        assert now() == 0


async def test_a_child_that_starts_again_can_be_terminated(stage: Stage) -> None:
    async with DynamicSupervisor() as supervisor:
        info = await supervisor.start_child(stage.starter("a", 5))
        await settle()
        await stage.crash("a")
        assert states(supervisor) == {"a": "starting"}
        await supervisor.terminate_child(info)
        assert supervisor.which_children() == []
        assert now() == 5
        await anyio.sleep(100)
        assert stage.log == ["+a", "-a"] * 2


async def test_a_late_start_that_is_being_stopped_can_be_terminated(
    stage: Stage, call: Any
) -> None:
    async def late(*, task_status: TaskStatus[None]) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(3)

    async with DynamicSupervisor() as supervisor, anyio.create_task_group() as tg:
        start = call(supervisor.start_child, ChildSpec("a", late, start_timeout=1))
        tg.start_soon(start)
        await anyio.sleep(2)
        (info,) = supervisor.which_children()
        await supervisor.terminate_child(info)
        assert now() == 4
        await start.wait()
        assert isinstance(start.error, StartError)


async def test_a_child_may_be_terminated_by_several_at_once(stage: Stage, call: Any) -> None:
    async with DynamicSupervisor() as supervisor:
        info = await supervisor.start_child(stage.slow("a", 2))
        await settle()
        ends: list[float] = []

        async def terminate() -> None:
            await supervisor.terminate_child(info)
            ends.append(now())

        async with anyio.create_task_group() as tg:
            tg.start_soon(terminate)
            tg.start_soon(terminate)
            await anyio.sleep(1)
            tg.start_soon(terminate)
        assert ends == [2, 2, 2]
        assert stage.log == ["+a", "-a"]


async def test_a_child_that_has_crashed_just_now_is_terminated_and_not_restarted(
    stage: Stage,
) -> None:
    async with DynamicSupervisor(backoff=STEADY) as supervisor:
        info = await supervisor.start_child(stage.child("a"))
        await settle()
        stage.give_cue("a", ValueError())
        await supervisor.terminate_child(info)
        await anyio.sleep(10)
        assert supervisor.which_children() == []
        assert stage.log == ["+a", "-a"]


async def test_many_are_terminated_beside_each_other_each_within_its_grace(stage: Stage) -> None:
    events: list[Event] = []
    async with DynamicSupervisor(subscribers=[events.append]) as supervisor:
        graces = {"a": 1.0, "b": 3.0, "c": 5.0, "d": math.inf}
        infos = [
            await supervisor.start_child(stage.slow(name, 6, shutdown=grace))
            for name, grace in graces.items()
        ]
        await settle()
        ends: dict[str, float] = {}

        async def terminate(info: ChildInfo) -> None:
            await supervisor.terminate_child(info)
            ends[info.id] = now()

        async with anyio.create_task_group() as tg:
            for info in infos:
                tg.start_soon(terminate, info)
        assert ends == {"a": 1, "b": 3, "c": 5, "d": 6}
    assert [event.child for event in events if isinstance(event, ChildKilled)] == ["a", "b", "c"]


async def test_a_child_that_ends_while_another_is_killed_is_not_killed_itself(
    stage: Stage,
) -> None:
    async def just_in_time() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(1)
                if on_trio():  # where a kill waits for some turns
                    await anyio.lowlevel.checkpoint()

    events: list[Event] = []
    async with DynamicSupervisor(subscribers=[events.append]) as supervisor:
        stubborn = await supervisor.start_child(stage.slow("a", 9, shutdown=1))
        other = await supervisor.start_child(ChildSpec("b", just_in_time, shutdown=1))
        await settle()
        async with anyio.create_task_group() as tg:
            tg.start_soon(supervisor.terminate_child, stubborn)
            await settle()  # so that its time comes first
            tg.start_soon(supervisor.terminate_child, other)
        assert now() == 1
        await anyio.sleep(10)  # trio's zombie
    assert [event.child for event in events if isinstance(event, ChildKilled)] == ["a"]
    faults = {event.child: event.fault for event in events if isinstance(event, ChildExited)}
    assert faults == {"a": Killed(), "b": None}


async def test_a_child_of_brutal_kill_is_not_asked(stage: Stage) -> None:
    ends: list[type[BaseException]] = []

    async def run() -> None:
        try:
            await anyio.sleep_forever()
        except BaseException as exc:
            ends.append(type(exc))
            raise

    async with DynamicSupervisor() as supervisor:
        info = await supervisor.start_child(ChildSpec("a", run, shutdown=BRUTAL_KILL))
        await settle()
        witness = Device()
        witness.link(line_of(info), LinkMode.MONITOR)
        await supervisor.terminate_child(info)
        assert now() == 0
        assert len(ends) == 1
        assert on_trio() or issubclass(ends[0], GeneratorExit)
        message = await witness.receive()
        assert isinstance(message, Disconnected)
        assert message.fault == Killed()


async def test_a_child_that_swallows_its_cancellation_is_killed() -> None:
    async def stubborn() -> None:
        with anyio.CancelScope(shield=True):
            for _ in range(20):
                try:
                    await anyio.sleep(10)
                except anyio.get_cancelled_exc_class():
                    pass

    events: list[Event] = []
    async with DynamicSupervisor(subscribers=[events.append]) as supervisor:
        info = await supervisor.start_child(ChildSpec("a", stubborn, shutdown=2))
        await settle()
        await supervisor.terminate_child(info)
        assert now() == 2
        assert supervisor.which_children() == []
        assert supervisor.tree().zombies == (("dynamic/a",) if on_trio() else ())
        with pytest.raises(LinkDownError):
            Device().link(line_of(info))
        await supervisor.start_child(ChildSpec("a", forever))
    kills = [event.zombie for event in events if isinstance(event, ChildKilled)]
    assert kills == [on_trio()]


async def test_more_zombies_than_allowed_end_the_supervisor(stage: Stage) -> None:
    names: tuple[str, ...] = ()
    try:
        async with DynamicSupervisor(zombie_limit=0) as supervisor:
            info = await supervisor.start_child(stage.slow("a", 10, shutdown=1))
            await settle()
            await supervisor.terminate_child(info)
            await settle()
    except ZombieLimitError as error:
        names = error.names
    assert names == (("dynamic/a",) if on_trio() else ())  # asyncio kills for real
    assert now() == 1


async def test_a_zombie_that_has_ended_does_not_count_any_more(stage: Stage) -> None:
    async with DynamicSupervisor(zombie_limit=1) as supervisor:
        for name in "abc":
            info = await supervisor.start_child(stage.slow(name, 10, shutdown=1))
            await settle()
            await supervisor.terminate_child(info)
            await anyio.sleep(20)
        assert supervisor.tree().phase == "running"
        assert supervisor.tree().zombies == ()


# -- stopping ----------------------------------------------------------------------


async def test_all_children_stop_at_once_each_within_its_grace(stage: Stage) -> None:
    events: list[tuple[float, str]] = []

    def note(event: Event) -> None:
        if isinstance(event, ChildKilled):
            events.append((now(), event.child))

    async with DynamicSupervisor(subscribers=[note]) as supervisor:
        for name, grace in {"a": 3.0, "b": 1.0, "c": math.inf, "d": 2.0}.items():
            await supervisor.start_child(stage.slow(name, 4, shutdown=grace))
        await settle()
    assert events == [(1, "b"), (2, "d"), (3, "a")]
    assert now() == 4


async def test_what_waits_or_is_parked_does_not_hold_up_the_stop(stage: Stage) -> None:
    async with DynamicSupervisor(backoff=STEADY) as supervisor:
        await supervisor.start_child(stage.child("a"))
        await supervisor.start_child(stage.child("b", budget=Budget(0, 1), exhausted=PARK))
        await settle()
        await stage.crash("a")
        await stage.crash("b")
        assert states(supervisor) == {"a": "waiting", "b": "parked"}
    assert now() == 0


async def test_a_stop_does_not_lengthen_the_grace_of_one_that_is_being_stopped(
    stage: Stage, call: Any
) -> None:
    async with anyio.create_task_group() as tg:
        async with DynamicSupervisor() as supervisor:
            info = await supervisor.start_child(stage.slow("a", 100, shutdown=5))
            await settle()
            terminating = call(supervisor.terminate_child, info)
            tg.start_soon(terminating)
            await anyio.sleep(4)
        assert now() == 5
        await terminating.wait()
        assert terminating.error is None


async def test_what_was_asked_to_stop_by_hand_is_told_to_have_been_asked(stage: Stage) -> None:
    async def fails_in_its_cleanup() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise ValueError

    events: list[Event] = []
    async with (
        anyio.create_task_group() as tg,
        DynamicSupervisor(subscribers=[events.append]) as supervisor,
    ):
        info = await supervisor.start_child(fails_in_its_cleanup)
        await settle()
        tg.start_soon(supervisor.terminate_child, info)
        await settle()
    (end,) = [event for event in events if isinstance(event, ChildExited)]
    assert end.stopping
    assert isinstance(end.fault, Failed)


@pytest.mark.parametrize(("seconds", "end"), [(None, 6.0), (2, 3.0), (0, 1.0)])
async def test_stop_tells_those_who_wait_for_a_start_and_ends_it(
    stage: Stage, call: Any, seconds: float | None, end: float
) -> None:
    async def stubborn(*, task_status: TaskStatus[None]) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(100)

    supervisor = DynamicSupervisor(max_restarts=0)
    async with anyio.create_task_group() as tg:
        await tg.start(supervisor.run)
        starts = [
            call(supervisor.start_child, spec) for spec in (stubborn, stage.starter("a", 100))
        ]
        for start in starts:
            tg.start_soon(start)
        await anyio.sleep(1)
        await supervisor.stop(seconds)
        assert now() == end
        for start in starts:
            await start.wait()
            assert isinstance(start.error, NotRunningError)
        assert stage.log == ["+a", "-a"]
        with pytest.raises(NotRunningError):
            await supervisor.start_child(forever)


async def test_a_stop_can_be_hurried(stage: Stage) -> None:
    supervisor = DynamicSupervisor()
    async with anyio.create_task_group() as tg:
        await tg.start(supervisor.run)
        await supervisor.start_child(stage.slow("a", 100, shutdown=50))
        await supervisor.start_child(stage.slow("b", 100, shutdown=80))
        await settle()
        tg.start_soon(supervisor.stop)
        await anyio.sleep(1)
        await supervisor.stop(2)
    assert now() == 3


async def test_the_stop_timeout_holds_for_all(stage: Stage) -> None:
    async with DynamicSupervisor(stop_timeout=2) as supervisor:
        await supervisor.start_child(stage.slow("a", 100))
        await supervisor.start_child(stage.slow("b", 1))
        await settle()
    assert now() == 2


async def test_calls_that_wait_when_the_supervisor_fails_are_told_so(
    stage: Stage, call: Any
) -> None:
    async with anyio.create_task_group() as tg:
        start = terminate = None
        with pytest.raises(MaxRestartsError):
            async with DynamicSupervisor(max_restarts=0) as supervisor:
                await supervisor.start_child(stage.child("a"))
                slow = await supervisor.start_child(stage.slow("slow", 3))
                start = call(supervisor.start_child, starts_never)
                terminate = call(supervisor.terminate_child, slow)
                tg.start_soon(start)
                tg.start_soon(terminate)
                await settle()
                await stage.crash("a")
                await anyio.sleep_forever()
        assert start is not None
        assert terminate is not None
        assert isinstance((await start.wait()).error, NotRunningError)
        assert (await terminate.wait()).error is None
        assert now() == 3


async def test_every_call_on_a_supervisor_that_does_not_run_says_so(stage: Stage) -> None:
    supervisor = DynamicSupervisor()
    async with supervisor:
        info = await supervisor.start_child(stage.child("a"))
    for change in (
        lambda: supervisor.start_child(stage.child("a")),
        lambda: supervisor.terminate_child(info),
        lambda: supervisor.restart_child(info),
    ):
        with pytest.raises(NotRunningError):
            await change()
    for look in (supervisor.which_children, supervisor.count_children):
        with pytest.raises(NotRunningError):
            look()
    assert str(supervisor.tree()) == "dynamic (dynamic, ended)"


async def test_a_supervisor_can_run_again_and_begins_with_none(stage: Stage) -> None:
    supervisor = DynamicSupervisor(max_children=1, max_restarts=1)
    infos: list[ChildInfo] = []
    for _ in range(3):
        async with supervisor:
            assert supervisor.which_children() == []
            for old in infos:
                with pytest.raises(ChildNotFoundError):
                    await supervisor.terminate_child(old)
            infos.append(await supervisor.start_child(stage.child("a")))
            await settle()
            await stage.crash("a")
            with pytest.raises(SupervisorError, match="already running"):
                async with supervisor:
                    pass
    assert stage.log == ["+a", "-a"] * 6


# -- what is meant for the whole program -------------------------------------------


async def test_what_is_meant_for_the_whole_program_stops_all_and_comes_out(stage: Stage) -> None:
    error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt) as caught:
        async with DynamicSupervisor() as supervisor:
            await supervisor.start_child(stage.child("a"))
            await supervisor.start_child(stage.child("b", restart=TEMPORARY))
            await settle()
            stage.give_cue("b", error)
            await anyio.sleep_forever()
    assert caught.value is error
    assert sorted(stage.log) == ["+a", "+b", "-a", "-b"]


@pytest.mark.parametrize("seconds", [0, 1])
async def test_so_does_what_is_meant_for_the_whole_program_at_a_start(
    stage: Stage, seconds: float
) -> None:
    error = SystemExit(3)
    with pytest.raises(SystemExit) as caught:
        async with DynamicSupervisor() as supervisor:
            await supervisor.start_child(stage.child("a"))
            await settle()
            stage.fails["b"] = [error]
            await supervisor.start_child(stage.starter("b", seconds))
    assert caught.value is error
    assert stage.log == ["+a", "+b", "-b", "-a"]
    assert now() == seconds


@pytest.mark.parametrize("how", ["terminated", "late", "with the rest"])
async def test_so_does_what_is_meant_for_the_whole_program_in_a_cleanup(
    stage: Stage, how: str
) -> None:
    lives = 0

    async def interrupted(*, task_status: TaskStatus[None]) -> None:
        nonlocal lives
        lives += 1
        if how != "late":
            task_status.started()
        try:
            await anyio.sleep_forever()
        finally:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        async with DynamicSupervisor() as supervisor:
            await supervisor.start_child(stage.child("a"))
            await settle()
            info = await supervisor.start_child(ChildSpec("i", interrupted, start_timeout=2))
            await settle()
            if how == "terminated":
                await supervisor.terminate_child(info)
                await anyio.sleep_forever()
    assert lives == 1
    assert stage.log == ["+a", "-a"]


# -- cancelled calls ---------------------------------------------------------------


async def test_a_start_that_is_cancelled_before_its_turn_leaves_nothing(
    stage: Stage, call: Any
) -> None:
    async with DynamicSupervisor() as supervisor, anyio.create_task_group() as tg:
        start = call(supervisor.start_child, stage.starter("a", 1))
        start.cancel()
        tg.start_soon(start)
        await start.wait()
        assert start.cancelled
        await anyio.sleep(10)
        assert supervisor.which_children() == []
        assert stage.log.count("+a") == stage.log.count("-a")


@pytest.mark.parametrize("turns", range(12))
async def test_a_start_that_is_cancelled_leaves_nothing_whenever_that_was(
    stage: Stage, call: Any, turns: int
) -> None:
    async with DynamicSupervisor(max_restarts=0) as supervisor, anyio.create_task_group() as tg:
        start = call(supervisor.start_child, stage.starter("a"))
        tg.start_soon(start)
        for _ in range(turns):
            await anyio.lowlevel.checkpoint()
        if not start.over:
            start.cancel()
        await start.wait()
        await settle()
        left = supervisor.which_children()
        assert len(left) == (not start.cancelled)
        assert stage.log.count("+a") - stage.log.count("-a") == len(left)


async def test_a_start_that_is_cancelled_stops_the_child_within_its_grace(
    stage: Stage, call: Any
) -> None:
    async def slow(*, task_status: TaskStatus[None]) -> None:
        stage.log.append("+")
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(3)
            stage.log.append("-")

    async with DynamicSupervisor(max_children=1) as supervisor, anyio.create_task_group() as tg:
        start = call(supervisor.start_child, slow)
        tg.start_soon(start)
        await anyio.sleep(1)
        start.cancel()
        await start.wait()
        assert start.cancelled
        assert now() == 1
        await settle()
        assert states(supervisor) == {"slow": "stopping"}
        await anyio.sleep(4)
        assert supervisor.which_children() == []
        assert stage.log == ["+", "-"]


async def test_a_start_that_is_cancelled_as_its_supervisor_ends_leaves_nothing(
    stage: Stage, call: Any
) -> None:
    async with anyio.create_task_group() as tg:
        async with DynamicSupervisor() as supervisor:
            start = call(supervisor.start_child, stage.starter("a", 10))
            tg.start_soon(start)
            await settle()
            start.cancel()
        assert stage.log == ["+a", "-a"]


async def test_a_terminate_that_is_cancelled_has_stopped_the_child_all_the_same(
    stage: Stage, call: Any
) -> None:
    async with DynamicSupervisor() as supervisor, anyio.create_task_group() as tg:
        info = await supervisor.start_child(stage.slow("a", 3))
        await settle()
        terminate = call(supervisor.terminate_child, info)
        tg.start_soon(terminate)
        await anyio.sleep(1)
        terminate.cancel()
        await terminate.wait()
        assert now() == 1
        await anyio.sleep(2.5)
        assert supervisor.which_children() == []
        assert stage.log == ["+a", "-a"]


async def test_a_restart_by_hand_that_is_cancelled_goes_on(stage: Stage, call: Any) -> None:
    async with (
        DynamicSupervisor(max_restarts=0, exhausted=PARK) as supervisor,
        anyio.create_task_group() as tg,
    ):
        info = await supervisor.start_child(stage.starter("a", 2))
        await settle()
        await stage.crash("a")
        restart = call(supervisor.restart_child, info)
        tg.start_soon(restart)
        await settle()
        restart.cancel()
        await anyio.sleep(3)
        assert restart.cancelled
        assert states(supervisor) == {"a": "running"}


# -- children that call their own supervisor ---------------------------------------


async def test_a_child_may_start_and_terminate_others_from_its_start(stage: Stage) -> None:
    async with DynamicSupervisor() as supervisor:
        victim = await supervisor.start_child(stage.slow("victim", 2))
        await settle()

        async def starts(*, task_status: TaskStatus[str]) -> None:
            info = await supervisor.start_child(stage.starter("inner", 3))
            await supervisor.terminate_child(victim)
            task_status.started(info.value)
            await anyio.sleep_forever()

        info = await supervisor.start_child(starts)
        assert info.value == "value of inner"
        assert now() == 5
        assert states(supervisor) == {"starts": "running", "inner": "running"}


@pytest.mark.parametrize("where", ["start", "work"])
async def test_a_child_that_terminates_itself_is_ended_or_told_but_never_hangs(
    stage: Stage, where: str
) -> None:
    outcome: list[str] = []

    async with DynamicSupervisor() as supervisor:

        async def ends_itself(*, task_status: TaskStatus[None]) -> None:
            if where == "work":
                task_status.started()
            try:
                await supervisor.terminate_child(current_device().id)
            except SelfCallError:
                outcome.append("told")
                raise
            except BaseException:
                outcome.append("ended")
                raise

        try:
            await supervisor.start_child(ends_itself)
        except StartError:
            assert where == "start"
        await settle()
        assert len(outcome) == 1
        assert where == "start" or outcome == ["ended"]
        assert supervisor.which_children() == []
        assert now() == 0


async def test_a_child_may_call_its_supervisor_from_its_cleanup(stage: Stage) -> None:
    outcome: list[object] = []

    async with DynamicSupervisor() as supervisor:
        victim = await supervisor.start_child(stage.slow("victim", 1))
        await settle()

        async def calls() -> None:
            me = current_device().id
            try:
                await anyio.sleep_forever()
            finally:
                with anyio.CancelScope(shield=True):
                    await supervisor.terminate_child(victim)
                    outcome.append((await supervisor.start_child(stage.starter("new", 1))).state)
                    try:
                        await supervisor.terminate_child(me)
                    except SelfCallError as error:
                        outcome.append(str(error))

        info = await supervisor.start_child(calls)
        await settle()
        await supervisor.terminate_child(info)
        assert now() == 2
        assert states(supervisor) == {"new": "running"}
    assert outcome[0] is ChildState.RUNNING
    assert "child 'calls' cannot terminate a child" in str(outcome[1])


async def test_a_child_that_calls_from_its_cleanup_when_all_are_stopped_is_told_so(
    stage: Stage,
) -> None:
    told: list[type[BaseException]] = []

    async def calls() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                try:
                    await supervisor.start_child(stage.child("new"))
                except NotRunningError as error:
                    told.append(type(error))

    async with DynamicSupervisor() as supervisor:
        await supervisor.start_child(calls)
        await settle()
    assert told == [NotRunningError]
    assert stage.log == []
    assert now() == 0


async def test_children_that_terminate_each_other_in_their_cleanups_are_freed_by_their_grace() -> (
    None
):
    infos: dict[str, ChildInfo] = {}

    async with DynamicSupervisor() as supervisor:

        async def ends(other: str) -> None:
            try:
                await anyio.sleep_forever()
            finally:
                with anyio.CancelScope(shield=True):
                    await supervisor.terminate_child(infos[other])

        for name, other in ("ab", "ba"):
            infos[name] = await supervisor.start_child(ChildSpec(name, ends, (other,)))
        await settle()
        await supervisor.terminate_child(infos["a"])
        await anyio.sleep(1)
        assert supervisor.which_children() == []
        assert 5 <= now() <= 6


async def test_a_child_that_is_stopped_takes_along_what_it_was_starting(stage: Stage) -> None:
    async with DynamicSupervisor() as supervisor:

        async def starts() -> None:
            await supervisor.start_child(stage.starter("inner", 100))

        info = await supervisor.start_child(starts)
        await settle()
        assert states(supervisor) == {"starts": "running", "inner": "starting"}
        await supervisor.terminate_child(info)
        await settle()
        assert supervisor.which_children() == []
        assert stage.log == ["+inner", "-inner"]


async def test_a_child_may_stop_its_supervisor_even_from_its_start(stage: Stage) -> None:
    supervisor = DynamicSupervisor()

    async def stops(*, task_status: TaskStatus[None]) -> None:
        await supervisor.stop()

    async with anyio.create_task_group() as tg:
        await tg.start(supervisor.run)
        with pytest.raises(NotRunningError):
            await supervisor.start_child(stops)
    assert now() == 0


# -- in a tree ---------------------------------------------------------------------


@pytest.mark.parametrize("grace", [BRUTAL_KILL, 2.0])
async def test_calls_that_wait_when_the_supervisor_is_killed_are_told_so(
    stage: Stage, call: Any, grace: Any
) -> None:
    inner = DynamicSupervisor(name="inner")
    spec = ChildSpec("inner", inner.run, is_supervisor=True, shutdown=grace)
    async with Supervisor([spec]) as outer, anyio.create_task_group() as tg:
        worker = await inner.start_child(stage.child("a"))
        start = call(inner.start_child, stage.starter("b", 100))
        tg.start_soon(start)
        await settle()
        await outer.terminate_child("inner")
        await start.wait()
        assert isinstance(start.error, NotRunningError)
        assert sorted(stage.new()) == ["+a", "+b", "-a", "-b"]
        with pytest.raises(LinkDownError):
            Device().link(line_of(worker))
        with pytest.raises(NotRunningError):
            await inner.start_child(forever)
        assert now() == 0
        assert outer.tree().zombies == ()

        await outer.restart_child("inner")
        assert inner.which_children() == []
        await inner.start_child(stage.child("a"))
        await settle()
        assert stage.new() == ["+a"]


async def test_a_terminate_that_waits_when_the_supervisor_is_killed_is_answered(
    stage: Stage, call: Any
) -> None:
    inner = DynamicSupervisor(name="inner")
    spec = ChildSpec("inner", inner.run, is_supervisor=True, shutdown=BRUTAL_KILL)
    async with Supervisor([spec]) as outer, anyio.create_task_group() as tg:
        worker = await inner.start_child(stage.slow("a", 3))
        await settle()
        terminate = call(inner.terminate_child, worker)
        tg.start_soon(terminate)
        await anyio.sleep(1)
        await outer.terminate_child("inner")
        await terminate.wait()
        assert terminate.error is None or isinstance(terminate.error, NotRunningError)
        assert now() == 1


async def test_supervisors_are_dynamic_children_and_all_below_them_stop_within_one_time(
    stage: Stage,
) -> None:
    below = DynamicSupervisor(name="below")
    async with DynamicSupervisor(name="top") as top:
        info = await top.start_child(below)
        assert info.value is below
        await below.start_child(stage.slow("a", 100, shutdown=math.inf))
        await below.start_child(stage.slow("b", 100, shutdown=math.inf))
        await settle()
        assert str(top.tree()).splitlines()[1:] == [
            "└─ below (dynamic) running",
            "   ├─ a running",
            "   └─ b running",
        ]
        assert top.count_children() == Counts(1, 1, 1, 0)
        with pytest.raises(SupervisorError):
            await top.start_child(below)
        assert top.count_children() == Counts(1, 1, 1, 0)
        await top.stop(3)
        assert now() == 3


async def test_a_supervisor_that_gave_up_is_started_again_without_children(stage: Stage) -> None:
    below = DynamicSupervisor(name="below", max_restarts=0)
    async with DynamicSupervisor(name="top") as top:
        await top.start_child(ChildSpec("below", below.run, is_supervisor=True, restart=TRANSIENT))
        await below.start_child(stage.child("a"))
        await settle()
        await stage.crash("a")
        assert [info.restarts for info in top.which_children()] == [1]
        assert below.which_children() == []


async def test_a_grandchild_cannot_end_what_waits_for_it(stage: Stage) -> None:
    told: list[type[BaseException]] = []
    below = Supervisor([], name="below")
    async with DynamicSupervisor(name="top") as top:
        info = await top.start_child(below)

        async def grandchild() -> None:
            try:
                await anyio.sleep_forever()
            finally:
                with anyio.CancelScope(shield=True):
                    try:
                        await top.terminate_child(info)
                    except SelfCallError as error:
                        told.append(type(error))

        await below.start_child(grandchild)
        await settle()
        await top.terminate_child(info)
    assert told == [SelfCallError]
    assert now() == 0


# -- being watched, events, memory -------------------------------------------------


async def test_a_child_that_does_not_report_in_time_is_killed_and_restarted(
    stage: Stage,
) -> None:
    events: list[Event] = []
    lives = 0

    async def hangs_at_times() -> None:
        nonlocal lives
        lives += 1
        for _ in range(3):
            await anyio.sleep(1)
            alive()
        await anyio.sleep(math.inf if lives == 1 else 0)
        while True:
            await anyio.sleep(1)
            alive()

    async with DynamicSupervisor(subscribers=[events.append]) as supervisor:
        info = await supervisor.start_child(ChildSpec("a", hangs_at_times, watchdog=2))
        await anyio.sleep(4.9)
        assert lives == 1
        await anyio.sleep(0.2)
        assert lives == 2
        await anyio.sleep(100)
        assert [(i.key, i.restarts) for i in supervisor.which_children()] == [(info.key, 1)]
    assert len([event for event in events if isinstance(event, ChildUnresponsive)]) == 1


async def test_a_child_that_is_being_stopped_need_not_report(stage: Stage) -> None:
    events: list[Event] = []
    async with DynamicSupervisor(subscribers=[events.append]) as supervisor:
        info = await supervisor.start_child(stage.slow("a", 4, watchdog=2))
        await settle()
        await supervisor.terminate_child(info)
        assert now() == 4
    assert names(events) == ["ChildStarted", "ChildExited"]


async def test_a_child_that_does_not_report_while_it_starts_has_failed_to_start(
    stage: Stage,
) -> None:
    async with DynamicSupervisor(max_restarts=0) as supervisor:
        with pytest.raises(StartError) as caught:
            await supervisor.start_child(ChildSpec("a", starts_never, watchdog=2))
        assert isinstance(caught.value.__cause__, UnresponsiveError)
        assert supervisor.which_children() == []
        assert now() == 2


async def test_each_thing_that_happens_is_one_event_for_each_subscriber(stage: Stage) -> None:
    first: list[Event] = []
    second: list[Event] = []
    async with DynamicSupervisor(
        name="top", max_restarts=1, exhausted=PARK, subscribers=[first.append, second.append]
    ) as supervisor:
        info = await supervisor.start_child(stage.starter("a"))
        await settle()
        await stage.crash("a")
        (again,) = supervisor.which_children()
        await stage.crash("a")
        third = await supervisor.restart_child(info)
        await supervisor.terminate_child(info)
    devices = [line_of(each).id for each in (info, again, third)]
    assert names(first) == [
        *["ChildStarted", "ChildExited"] * 2,
        "ChildParked",
        *["ChildStarted", "ChildExited"],
    ]
    assert first == second
    started = [event for event in first if isinstance(event, ChildStarted)]
    assert [(e.supervisor, e.child, e.restarts) for e in started] == [("top", "a", n)
        for n in range(3)]  # fmt: skip
    assert [event.device for event in started] == devices
    exited = [event for event in first if isinstance(event, ChildExited)]
    assert [event.device for event in exited] == devices
    assert [event.stopping for event in exited] == [False, False, True]


async def test_giving_up_is_told_once(stage: Stage) -> None:
    events: list[Event] = []
    with pytest.raises(MaxRestartsError):
        async with DynamicSupervisor(max_restarts=0, subscribers=[events.append]) as supervisor:
            await supervisor.start_child(stage.child("a"))
            await supervisor.start_child(stage.child("b"))
            await settle()
            stage.give_cue("a", ValueError())
            stage.give_cue("b", ValueError())
            await anyio.sleep_forever()
    assert len([event for event in events if isinstance(event, SupervisorGaveUp)]) == 1
    assert len([event for event in events if isinstance(event, ChildExited)]) == 2


class _Big:
    """Something that a child is given, and which is to be freed after it."""


async def test_nothing_is_kept_of_a_child_that_was_terminated_while_it_started(call: Any) -> None:
    async def run(big: _Big, *, task_status: TaskStatus[None]) -> None:
        await anyio.sleep_forever()

    async with DynamicSupervisor() as supervisor:
        big = _Big()
        left = weakref.ref(big)
        start = call(supervisor.start_child, ChildSpec("a", run, (big,), start_timeout=3600))
        del big
        async with anyio.create_task_group() as tg:
            tg.start_soon(start)
            await settle()
            await supervisor.terminate_child(supervisor.which_children()[0])
        assert isinstance(start.error, StartError)
        del start
        await settle()
        gc.collect()
        assert left() is None


async def test_a_start_that_is_terminated_is_not_late_any_more(stage: Stage, call: Any) -> None:
    async def slow(*, task_status: TaskStatus[None]) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(3)

    async with DynamicSupervisor() as supervisor, anyio.create_task_group() as tg:
        start = call(supervisor.start_child, ChildSpec("a", slow, start_timeout=2))
        tg.start_soon(start)
        await anyio.sleep(1)
        await supervisor.terminate_child(supervisor.which_children()[0])
        assert now() == 4
        await start.wait()
        assert isinstance(start.error, StartError)
        assert isinstance(start.error.__cause__, NotStartedError)


@pytest.mark.parametrize(
    "fields",
    [{"start_timeout": 3600}, {"shutdown": 3600}, {"watchdog": 3600}, {"backoff": STEADY}],
    ids=lambda fields: next(iter(fields)),
)
@pytest.mark.parametrize("how", ["ends", "is terminated"])
async def test_nothing_is_kept_of_a_child_that_is_gone(fields: dict[str, Any], how: str) -> None:
    async def run(big: _Big, *, task_status: TaskStatus[None]) -> None:
        task_status.started()
        if how == "is terminated":
            await anyio.sleep_forever()

    async with DynamicSupervisor() as supervisor:
        left = []
        for _ in range(5):
            big = _Big()
            left.append(weakref.ref(big))
            info = await supervisor.start_child(
                ChildSpec("a", run, (big,), restart=TEMPORARY, **fields)
            )
            del big
            await settle()
            if how == "is terminated":
                await supervisor.terminate_child(info)
            del info
            await settle()
        gc.collect()
        assert [ref for ref in left if ref() is not None] == []


async def test_what_was_to_be_done_at_a_time_is_not_kept_until_then() -> None:
    async def run(*, task_status: TaskStatus[None]) -> None:
        task_status.started()

    async with DynamicSupervisor() as supervisor:
        await supervisor.start_child(ChildSpec("first", forever, watchdog=60))
        for _ in range(500):
            await supervisor.start_child(
                ChildSpec("a", run, restart=TEMPORARY, start_timeout=3600, watchdog=3600)
            )
        await settle()
        assert states(supervisor) == {"first": "running"}
        gc.collect()
        assert sum(isinstance(thing, Timer) for thing in gc.get_objects()) < 150


async def test_a_child_is_not_found_by_what_is_no_handle() -> None:
    async with DynamicSupervisor(subscribers=()) as supervisor:
        await supervisor.start_child(ChildSpec("it", forever))
        for ref in ("it", 5, None):
            with pytest.raises(TypeError, match="by ChildInfo, Line or DeviceID"):
                await supervisor.terminate_child(ref)  # type: ignore[arg-type]


async def test_a_request_that_comes_when_it_has_just_ended_is_refused() -> None:
    class Ending(Desk):
        """Ends, as in another thread, after it was seen to run."""

        def put(self, request: Any) -> None:
            self.close()
            super().put(request)

    async def never(_: object) -> None:
        pytest.fail("was called")

    desk = Ending("service")
    with anyio.fail_after(20), pytest.raises(NotRunningError, match="service"):
        await desk.submit("count its children", never)


@pytest.mark.parametrize("turns", range(12))
async def test_what_a_child_is_given_is_taken_by_it_or_left_to_who_started_it(turns: int) -> None:
    taken: list[str] = []
    left: list[str] = []

    async def take(thing: str, *, task_status: TaskStatus[None]) -> None:
        taken.append(thing)
        task_status.started()
        await forever()

    async def give() -> None:
        try:
            await supervisor.start_child(ChildSpec("it", take, ("thing",), restart=TEMPORARY))
        except (StartError, NotRunningError):
            left.append("thing")

    async with anyio.create_task_group() as tg, DynamicSupervisor(subscribers=()) as supervisor:
        tg.start_soon(give)
        for _ in range(turns):
            await anyio.lowlevel.checkpoint()

    assert taken + left == ["thing"]
