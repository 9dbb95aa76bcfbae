"""The static supervisor against OTP's contract, and what it does beyond that. In virtual time."""

# ruff: noqa: PT012 - what raises is the block of a supervisor, and things happen in it

from __future__ import annotations

import asyncio
import gc
import logging
import math
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import pytest
import trio
from anyio.abc import TaskStatus

from backplane import (
    Cancelled,
    CascadeCrash,
    Cascaded,
    Device,
    Disconnected,
    Failed,
    Killed,
    LinkDownError,
    LinkMode,
    current_device,
)
from backplane.supervisor import (
    BRUTAL_KILL,
    AlreadyPresentError,
    AlreadyStartedError,
    AutoShutdown,
    Backoff,
    Budget,
    ChildExited,
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
    Event,
    Exhausted,
    Ignore,
    MaxRestartsError,
    NotRunningError,
    NotStartedError,
    Permanent,
    Restart,
    SelfCallError,
    SpecError,
    StartError,
    StartTimeoutError,
    Strategy,
    Supervisor,
    SupervisorError,
    SupervisorGaveUp,
    alive,
    log_event,
)

if TYPE_CHECKING:  # mypy knows it by another name than pytest
    from supervisor.stage import Stage, now, on_trio, settle
else:
    from .stage import Stage, now, on_trio, settle

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.parametrize("anyio_backend", ["virtual asyncio", "virtual trio"], indirect=True),
]

TEMPORARY, TRANSIENT, PERMANENT = Restart.TEMPORARY, Restart.TRANSIENT, Restart.PERMANENT
ALL, REST = Strategy.ONE_FOR_ALL, Strategy.REST_FOR_ONE
STEADY = Backoff(initial=1, factor=1, maximum=1, jitter=0)


@pytest.fixture
def stage() -> Stage:
    return Stage(tells_of_starts=True)


def states(supervisor: Supervisor) -> dict[str, str]:
    return {info.id: info.state.value for info in reversed(supervisor.which_children())}


# -- starting ----------------------------------------------------------------------


async def test_children_start_in_order_and_stop_in_reverse(stage: Stage) -> None:
    async with Supervisor([stage.child(name) for name in "abc"]):
        await settle()
        assert stage.new() == ["+a", "+b", "+c"]
    assert stage.new() == ["-c", "-b", "-a"]
    assert now() == 0


async def test_the_next_child_waits_until_the_one_before_has_said_that_it_has_started(
    stage: Stage,
) -> None:
    children = [stage.starter("a", 1), stage.starter("b", 2), stage.child("c")]
    async with Supervisor(children) as supervisor:
        assert now() == 3
        await settle()
        assert stage.new() == ["+a", "a ready", "+b", "b ready", "+c"]
        assert supervisor.which_child("a").value == "value of a"
        assert supervisor.which_child("c").value is None


async def test_a_child_is_run_with_its_arguments_at_each_start() -> None:
    calls: list[Any] = []

    async def run(*args: Any, **kwargs: Any) -> None:
        calls.append((args, kwargs))
        if len(calls) == 1:
            raise ValueError
        await anyio.sleep_forever()

    async with Supervisor([ChildSpec("a", run, (1, 2), kwargs={"key": 3})]):
        await settle()
    assert calls == [((1, 2), {"key": 3})] * 2


@pytest.mark.parametrize("reports", [False, True])
async def test_a_child_that_is_given_its_device_answers_for_it(reports: bool) -> None:
    log: list[str] = []

    async def run(*, device: Device) -> None:
        log.append("begin")
        message = await device.receive()
        log.append(type(message).__name__)

    async def says_so(*, device: Device, task_status: TaskStatus[str]) -> None:
        task_status.started("ready")
        await run(device=device)

    spec = ChildSpec("a", says_so if reports else run, gets_device=True)
    async with Supervisor([spec]) as supervisor:
        await settle()
        info = supervisor.which_child("a")
        assert info.value == ("ready" if reports else None)
        assert info.line is not None
        assert info.line.connected
    assert log == ["begin", "Shutdown"]
    assert not info.line.connected


async def test_a_start_that_fails_stops_what_was_started_in_reverse_order(stage: Stage) -> None:
    stage.fails["c"] = [OSError("c cannot start")]
    children = [stage.child("a"), stage.starter("b"), stage.starter("c", 1), stage.child("d")]
    entered = False
    with pytest.raises(StartError, match="child 'c' of supervisor 'top' did not start") as caught:
        async with Supervisor(children, name="top", max_restarts=10):
            entered = True
    assert not entered
    assert (caught.value.supervisor, caught.value.child) == ("top", "c")
    assert isinstance(caught.value.__cause__, OSError)
    assert stage.log == ["+a", "+b", "b ready", "+c", "-c", "-b", "-a"]
    assert now() == 1  # it is not tried again


async def test_a_child_that_returns_before_it_has_started_has_failed_to_start() -> None:
    async def returns(*, task_status: TaskStatus[None]) -> None: ...

    with pytest.raises(StartError, match="NotStartedError") as caught:
        async with Supervisor([returns]):
            pass
    assert isinstance(caught.value.__cause__, NotStartedError)


async def test_a_start_that_takes_longer_than_its_timeout_has_failed(stage: Stage) -> None:
    with pytest.raises(StartError) as caught:
        async with Supervisor([stage.child("a"), stage.starter("b", 10, start_timeout=3)]):
            pass
    assert isinstance(caught.value.__cause__, StartTimeoutError)
    assert isinstance(caught.value.__cause__, TimeoutError)
    assert now() == 3
    assert stage.log == ["+a", "+b", "-b", "-a"]


async def test_a_child_may_have_nothing_to_do_and_stays_known(stage: Stage) -> None:
    idle = True
    events: list[Event] = []

    async def ignoring(*, task_status: TaskStatus[None]) -> None:
        if idle:
            raise Ignore
        task_status.started()
        await anyio.sleep_forever()

    children: list[Any] = [
        ignoring,
        ChildSpec("brief", ignoring, restart=TEMPORARY),
        stage.child("c"),
    ]
    async with Supervisor(children, strategy=ALL, subscribers=[events.append]) as supervisor:
        await settle()
        assert states(supervisor) == {"ignoring": "stopped", "c": "running"}
        assert [event.fault for event in events if isinstance(event, ChildExited)] == [None] * 2
        info = await supervisor.restart_child("ignoring")
        assert info.state is ChildState.STOPPED
        await stage.crash("c")
        assert states(supervisor) == {"ignoring": "stopped", "c": "running"}
        idle = False
        await stage.crash("c")
        assert states(supervisor) == {"ignoring": "running", "c": "running"}
        info = await supervisor.start_child(stage.starter("d"))
        assert info.state is ChildState.RUNNING


async def test_a_child_that_ignores_after_it_has_started_has_failed() -> None:
    async def late(*, task_status: TaskStatus[None]) -> None:
        task_status.started()
        raise Ignore

    with pytest.raises(MaxRestartsError) as caught:
        async with Supervisor([late]):
            await anyio.sleep(1)
    assert isinstance(caught.value.__cause__, Ignore)


async def test_started_must_not_be_said_twice() -> None:
    errors: list[str] = []

    async def twice(*, task_status: TaskStatus[None]) -> None:
        task_status.started()
        try:
            task_status.started()
        except RuntimeError as error:
            errors.append(str(error))
        await anyio.sleep_forever()

    async with Supervisor([twice]):
        await settle()
    assert errors == ["called 'started' twice on the same task status"]


async def test_a_child_that_crashes_while_others_start_is_restarted_after_that(
    stage: Stage,
) -> None:
    calls = 0

    async def hasty() -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise ValueError
        await anyio.sleep_forever()

    async with Supervisor([hasty, stage.starter("b", 5)]) as supervisor:
        await settle()
        assert calls == 2
        assert supervisor.which_child("hasty").restarts == 1
        assert supervisor.which_child("hasty").started_at == 5


async def test_a_supervisor_without_children_just_runs() -> None:
    async with Supervisor() as supervisor:
        assert supervisor.count_children() == Counts(0, 0, 0, 0)


async def test_a_child_runs_under_a_device_of_its_own_that_can_be_linked(stage: Stage) -> None:
    me, devices = Device(), []

    async def worker() -> None:
        devices.append(current_device().id)
        await anyio.sleep_forever()

    async with Supervisor([worker, stage.child("b")]) as supervisor:
        await settle()
        line = supervisor.which_child("worker").line
        assert line is not None
        assert line.id in devices
        crashing = supervisor.which_child("b").line
        assert crashing is not None
        me.link(crashing, LinkMode.MONITOR)
        error = ValueError()
        await stage.crash("b", error)
        assert me.receive_nowait() == Disconnected(crashing.id, Failed(error))
        me.link(line, LinkMode.MONITOR)
    assert me.receive_nowait() == Disconnected(line.id, None)
    me.disconnect()


# -- who is restarted --------------------------------------------------------------


@pytest.mark.parametrize(
    ("strategy", "name", "expected"),
    [
        (Strategy.ONE_FOR_ONE, "a", "-a +a"),
        (Strategy.ONE_FOR_ONE, "b", "-b +b"),
        (REST, "a", "-a -d -c -b +a +b +c +d"),
        (REST, "b", "-b -d -c +b +c +d"),
        (REST, "d", "-d +d"),
        (ALL, "a", "-a -d -c -b +a +b +c +d"),
        (ALL, "b", "-b -d -c -a +a +b +c +d"),
        (ALL, "d", "-d -c -b -a +a +b +c +d"),
    ],
)
async def test_the_strategy_says_who_is_stopped_in_reverse_and_started_in_order(
    stage: Stage, strategy: Strategy, name: str, expected: str
) -> None:
    async with Supervisor([stage.child(each) for each in "abcd"], strategy=strategy):
        await settle()
        stage.new()
        await stage.crash(name)
        assert stage.new() == expected.split()
    assert stage.new() == ["-d", "-c", "-b", "-a"]


@pytest.mark.parametrize("strategy", Strategy)
async def test_an_end_that_asks_for_no_restart_never_touches_siblings(
    stage: Stage, strategy: Strategy
) -> None:
    children = [
        stage.child("a"),
        stage.child("temporary", restart=TEMPORARY),
        stage.child("transient", restart=TRANSIENT),
        stage.child("d"),
    ]
    async with Supervisor(children, strategy=strategy, max_restarts=0) as supervisor:
        await settle()
        stage.new()
        await stage.crash("temporary")
        await stage.end("transient")
        assert stage.new() == ["-temporary", "-transient"]
        assert states(supervisor) == {"a": "running", "transient": "stopped", "d": "running"}


@pytest.mark.parametrize(
    ("restart", "after_return", "after_crash"),
    [(PERMANENT, True, True), (TRANSIENT, False, True), (TEMPORARY, False, False)],
)
async def test_the_restart_type_says_after_which_ends_a_child_is_started_again(
    stage: Stage, restart: Restart, after_return: bool, after_crash: bool
) -> None:
    for crashes, again in ((False, after_return), (True, after_crash)):
        async with Supervisor([stage.child("a", restart=restart)]) as supervisor:
            await settle()
            await (stage.crash if crashes else stage.end)("a")
            assert stage.new() == (["+a", "-a", "+a"] if again else ["+a", "-a"])
            known = supervisor.count_children().specs
            assert known == (0 if restart is TEMPORARY else 1)
        stage.new()


async def test_a_transient_child_that_was_shut_down_on_request_has_ended_well(
    stage: Stage,
) -> None:
    children = [stage.child("a", restart=TRANSIENT), stage.child("b")]
    async with Supervisor(children) as supervisor:
        await settle()
        for info in supervisor.which_children():
            assert info.line is not None
            info.line.shutdown()
        await settle()
        assert states(supervisor) == {"a": "stopped", "b": "running"}
        assert supervisor.which_child("b").restarts == 1


async def test_a_child_that_is_cancelled_or_taken_along_by_another_has_not_ended_well(
    stage: Stage,
) -> None:
    events: list[Event] = []
    other = Device()

    async def linked() -> None:
        current_device().link(other, LinkMode.MONITOR)
        await anyio.sleep_forever()

    async def cancelled() -> None:
        raise asyncio.CancelledError

    children = [
        ChildSpec("linked", linked, restart=TEMPORARY),
        *([] if on_trio() else [ChildSpec("cancelled", cancelled, restart=TEMPORARY)]),
    ]
    async with Supervisor(children, subscribers=[events.append]):
        await settle()
        other.disconnect(Killed())
        await settle()
    faults = {event.child: event.fault for event in events if isinstance(event, ChildExited)}
    assert faults["linked"] == Cascaded(other.id, Killed())
    assert on_trio() or faults["cancelled"] == Cancelled()


@pytest.mark.parametrize("strategy", [ALL, REST])
async def test_a_group_restart_starts_also_what_was_stopped_by_hand_or_ended_well(
    stage: Stage, strategy: Strategy
) -> None:
    children = [
        stage.child("a"),
        stage.child("b"),
        stage.child("c", restart=TRANSIENT),
        stage.child("d", restart=TEMPORARY),
        stage.child("e"),
    ]
    async with Supervisor(children, strategy=strategy) as supervisor:
        await settle()
        await supervisor.terminate_child("b")
        await stage.end("c")
        stage.new()
        await stage.crash("a")
        assert stage.new() == ["-a", "-e", "-d", "+a", "+b", "+c", "+e"]
        assert list(states(supervisor)) == ["a", "b", "c", "e"]


async def test_one_for_one_leaves_alone_what_was_stopped_by_hand(stage: Stage) -> None:
    async with Supervisor([stage.child("a"), stage.child("b")]) as supervisor:
        await settle()
        await supervisor.terminate_child("b")
        await stage.crash("a")
        assert states(supervisor) == {"a": "running", "b": "stopped"}


# -- how often ---------------------------------------------------------------------


async def test_one_restart_too_many_within_the_window_bounds_included_ends_the_supervisor(
    stage: Stage,
) -> None:
    with pytest.raises(MaxRestartsError):
        async with Supervisor([stage.child("a")], max_restarts=1, max_seconds=5):
            await settle()
            await stage.crash("a")
            await anyio.sleep(5)
            await stage.crash("a")
    assert now() == 5


async def test_restarts_that_are_further_apart_than_the_window_go_on_for_ever(
    stage: Stage,
) -> None:
    async with Supervisor([stage.child("a")], max_restarts=1, max_seconds=5):
        await settle()
        for _ in range(20):
            await stage.crash("a")
            await anyio.sleep(5.001)
        assert len(stage.log) == 41


async def test_without_any_restart_allowed_the_first_crash_is_fatal(stage: Stage) -> None:
    with pytest.raises(MaxRestartsError):
        async with Supervisor([stage.child("a")], max_restarts=0):
            await settle()
            await stage.crash("a")
    assert stage.log == ["+a", "-a"]


async def test_the_restart_of_a_group_counts_once_even_if_two_of_it_crash_together(
    stage: Stage,
) -> None:
    children = [stage.child(name) for name in "abc"]
    async with Supervisor(children, strategy=ALL, max_restarts=1):
        await settle()
        stage.give_cue("a", ValueError("a"))
        stage.give_cue("b", ValueError("b"))
        await settle()
        assert sorted(stage.new()) == ["+a", "+a", "+b", "+b", "+c", "+c", "-a", "-b", "-c"]


async def test_a_supervisor_that_gives_up_stops_the_rest_and_cancels_its_block(
    stage: Stage,
) -> None:
    reached = False
    error = ValueError("why")
    with pytest.raises(MaxRestartsError, match="gave up on child 'b': more than 0") as caught:
        async with Supervisor(
            [stage.child(name) for name in "abc"], max_restarts=0, name="top"
        ) as supervisor:
            await settle()
            stage.give_cue("b", error)
            await anyio.sleep(100)
            reached = True
    assert not reached
    assert now() == 0
    assert caught.value.__cause__ is error
    assert (caught.value.supervisor, caught.value.child) == ("top", "b")
    assert stage.log == ["+a", "+b", "+c", "-b", "-c", "-a"]
    with pytest.raises(NotRunningError):
        supervisor.count_children()


@pytest.mark.parametrize("restart", [PERMANENT, TRANSIENT])
async def test_a_sub_supervisor_that_gave_up_is_started_again_also_if_it_is_transient(
    stage: Stage, restart: Restart
) -> None:
    inner = Supervisor([stage.child("a")], max_restarts=0, name="inner")
    spec = ChildSpec("inner", inner.run, is_supervisor=True, restart=restart)
    async with Supervisor([spec]) as outer:
        await settle()
        await stage.crash("a")
        assert stage.new() == ["+a", "-a", "+a"]
        assert outer.which_child("inner").restarts == 1


async def test_escalation_goes_up_the_tree_and_keeps_the_first_cause(stage: Stage) -> None:
    inner = Supervisor([stage.child("a")], max_restarts=0, name="inner")
    error = ValueError("why")
    with pytest.raises(MaxRestartsError) as caught:
        async with Supervisor([inner], max_restarts=0, name="outer"):
            await settle()
            await stage.crash("a", error)
    cause = caught.value.__cause__
    assert isinstance(cause, MaxRestartsError)
    assert cause.supervisor == "inner"
    assert cause.__cause__ is error


async def test_a_restart_whose_start_fails_is_tried_again_at_once_and_each_try_is_counted(
    stage: Stage,
) -> None:
    with pytest.raises(MaxRestartsError) as caught:
        async with Supervisor([stage.starter("a")], max_restarts=3):
            await settle()
            stage.fails["a"] = [OSError("a cannot start")] * 100
            stage.new()
            await stage.crash("a")
    assert stage.log == ["-a", *["+a", "-a"] * 3]
    assert isinstance(caught.value.__cause__, OSError)
    assert now() == 0


async def test_requests_are_served_between_two_tries(stage: Stage) -> None:
    async with Supervisor([stage.starter("a", 1)], max_restarts=10**6) as supervisor:
        stage.fails["a"] = [OSError("a cannot start")] * 1000
        await stage.crash("a")
        assert supervisor.which_child("a").state is ChildState.STARTING
        await supervisor.terminate_child("a")
        assert supervisor.which_child("a").state is ChildState.STOPPED
        stage.new()
        await anyio.sleep(10)
        assert stage.new() == []


async def test_one_for_all_stops_those_already_started_before_it_tries_again(
    stage: Stage,
) -> None:
    children = [stage.starter("a"), stage.starter("b"), stage.starter("c")]
    async with Supervisor(children, strategy=ALL):
        await settle()
        stage.new()
        stage.fails["b"] = [OSError("b cannot start")]
        await stage.crash("c")
        log = [entry for entry in stage.new() if "ready" not in entry]
        assert log == ["-c", "-b", "-a", "+a", "+b", "-b", "-a", "+a", "+b", "+c"]


async def test_rest_for_one_keeps_those_before_the_one_that_failed_to_start(
    stage: Stage,
) -> None:
    children = [stage.starter("a"), stage.starter("b"), stage.starter("c")]
    async with Supervisor(children, strategy=REST):
        await settle()
        stage.new()
        stage.fails["b"] = [OSError("b cannot start")]
        await stage.crash("a")
        log = [entry for entry in stage.new() if "ready" not in entry]
        assert log == ["-a", "-c", "-b", "+a", "+b", "-b", "+b", "+c"]


async def test_a_child_with_a_budget_of_its_own_does_not_spend_its_supervisors(
    stage: Stage,
) -> None:
    children = [stage.child("a", budget=Budget(5, 10)), stage.child("b")]
    with pytest.raises(MaxRestartsError, match="more than 5 restarts within 10 s"):
        async with Supervisor(children, max_restarts=1):
            await settle()
            for _ in range(5):
                await stage.crash("a")
            await stage.crash("b")
            assert stage.log.count("+a") == 6
            assert stage.log.count("+b") == 2
            await stage.crash("a")


async def test_a_fault_that_a_restart_cannot_mend_is_not_tried_again(stage: Stage) -> None:
    for error in (Permanent("no table"), ExceptionGroup("", [Permanent("no table")])):
        with pytest.raises(MaxRestartsError, match="a restart cannot mend") as caught:
            async with Supervisor([stage.child("a")], max_restarts=100):
                await settle()
                await stage.crash("a", error)
        assert stage.new() == ["+a", "-a"]
        assert caught.value.__cause__ is error


async def test_a_start_that_says_that_it_can_never_succeed_is_not_tried_again() -> None:
    calls = 0

    async def run(*, task_status: TaskStatus[None]) -> None:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise Permanent
        task_status.started()

    with pytest.raises(MaxRestartsError):
        async with Supervisor([run], max_restarts=100):
            await anyio.sleep(1)
    assert calls == 2


async def test_a_child_that_has_spent_its_budget_is_parked_if_so_agreed(stage: Stage) -> None:
    events: list[Event] = []
    async with Supervisor(
        [stage.child("a"), stage.child("b")],
        max_restarts=0,
        exhausted=Exhausted.PARK,
        subscribers=[events.append],
    ) as supervisor:
        await settle()
        await stage.crash("a")
        assert states(supervisor) == {"a": "parked", "b": "running"}
        assert [event.child for event in events if isinstance(event, ChildParked)] == ["a"]
        assert supervisor.count_children() == Counts(2, 1, 0, 2)
        await supervisor.restart_child("a")
        await settle()
        assert states(supervisor) == {"a": "running", "b": "running"}
        await stage.crash("a")
        await supervisor.delete_child("a")
        assert states(supervisor) == {"b": "running"}


@pytest.mark.parametrize("strategy", [ALL, REST])
async def test_a_group_is_started_without_the_child_that_is_parked_meanwhile(
    stage: Stage, strategy: Strategy
) -> None:
    bad = stage.starter("b", budget=Budget(1, 5), exhausted=Exhausted.PARK)
    children = [stage.child("a"), bad, stage.child("c")]
    async with Supervisor(children, strategy=strategy) as supervisor:
        await settle()
        stage.fails["b"] = [OSError("b cannot start")] * 2
        await stage.crash("a")
        assert states(supervisor) == {"a": "running", "b": "parked", "c": "running"}
        await stage.crash("a")
        assert states(supervisor) == {"a": "running", "b": "parked", "c": "running"}


async def test_a_supervisor_that_stops_when_its_budget_is_spent_ends_well(stage: Stage) -> None:
    events: list[Event] = []
    async with Supervisor(
        [stage.child("a"), stage.child("b")],
        max_restarts=0,
        exhausted=Exhausted.STOP,
        subscribers=[events.append],
    ) as supervisor:
        await settle()
        await stage.crash("a")
        await supervisor.wait()
        assert stage.log == ["+a", "+b", "-a", "-b"]
    assert isinstance(events[-2], SupervisorGaveUp)


# -- waiting -----------------------------------------------------------------------


async def test_a_child_waits_before_its_restart_and_is_seen_to(stage: Stage) -> None:
    events: list[Event] = []
    backoff = Backoff(initial=1, factor=2, maximum=3, jitter=0, reset_after=10)
    async with Supervisor(
        [stage.child("a", backoff=backoff)], max_restarts=100, subscribers=[events.append]
    ) as supervisor:
        await settle()
        for wait in (1, 2, 3, 3):
            await stage.crash("a")
            assert states(supervisor) == {"a": "waiting"}
            assert not supervisor.count_children().active
            await anyio.sleep(wait - 0.01)
            assert states(supervisor) == {"a": "waiting"}
            await anyio.sleep(0.02)
            assert states(supervisor) == {"a": "running"}
        await anyio.sleep(10)
        await stage.crash("a")
        await anyio.sleep(1.01)
        assert states(supervisor) == {"a": "running"}
    waits = [event for event in events if isinstance(event, ChildWaiting)]
    assert [wait.delay for wait in waits] == [1, 2, 3, 3, 1]
    assert [wait.attempt for wait in waits] == [1, 2, 3, 4, 1]


async def test_a_failed_restart_waits_too(stage: Stage) -> None:
    async with Supervisor([stage.starter("a")], backoff=STEADY) as supervisor:
        stage.fails["a"] = [OSError("a cannot start")] * 2
        await stage.crash("a")
        await anyio.sleep(2.5)
        assert states(supervisor) == {"a": "waiting"}
        await anyio.sleep(1)
        assert states(supervisor) == {"a": "running"}


async def test_a_child_that_waits_can_be_terminated_and_then_restarted_by_hand(
    stage: Stage,
) -> None:
    async with Supervisor([stage.child("a")], backoff=STEADY) as supervisor:
        await settle()
        await stage.crash("a")
        with pytest.raises(ChildRestartingError):
            await supervisor.restart_child("a")
        with pytest.raises(ChildRestartingError):
            await supervisor.delete_child("a")
        with pytest.raises(AlreadyPresentError):
            await supervisor.start_child(stage.child("a"))
        await supervisor.terminate_child("a")
        assert states(supervisor) == {"a": "stopped"}
        await anyio.sleep(5)
        assert states(supervisor) == {"a": "stopped"}
        await supervisor.restart_child("a")
        assert states(supervisor) == {"a": "running"}


async def test_a_child_that_is_terminated_as_its_wait_is_over_stays_down(stage: Stage) -> None:
    children = [stage.starter("a", 1), stage.child("b")]
    async with Supervisor(children, backoff=STEADY) as supervisor:
        await settle()
        await stage.crash("a")
        await stage.crash("b")
        stage.new()
        await anyio.sleep(1.5)  # both waits are over, and a takes its time to start
        assert states(supervisor) == {"a": "starting", "b": "waiting"}
        await supervisor.terminate_child("b")
        await anyio.sleep(10)
        assert states(supervisor) == {"a": "running", "b": "stopped"}
        assert stage.new() == ["+a", "a ready"]


async def test_stopping_does_not_wait_for_a_wait(stage: Stage) -> None:
    async with Supervisor([stage.child("a")], backoff=Backoff(100, jitter=0, maximum=100)):
        await settle()
        await stage.crash("a")
    assert now() == 0


async def test_a_group_waits_once_for_the_longest_wait_and_takes_in_who_fails_meanwhile(
    stage: Stage,
) -> None:
    children = [
        stage.child("a", backoff=Backoff(initial=5, jitter=0)),
        stage.child("b"),
        stage.child("c", backoff=Backoff(initial=1, jitter=0)),
    ]
    async with Supervisor(children, strategy=REST) as supervisor:
        await settle()
        stage.new()
        await stage.crash("c")
        assert states(supervisor) == {"a": "running", "b": "running", "c": "waiting"}
        await stage.crash("a")
        assert states(supervisor) == {"a": "waiting", "b": "waiting", "c": "waiting"}
        await anyio.sleep(4.9)
        assert stage.new() == ["-c", "-a", "-b"]
        await anyio.sleep(0.2)
        assert stage.new() == ["+a", "+b", "+c"]


async def test_a_group_is_restarted_without_the_child_that_is_terminated_while_it_waits(
    stage: Stage,
) -> None:
    children = [stage.child("a"), stage.child("b")]
    async with Supervisor(children, strategy=ALL, backoff=STEADY) as supervisor:
        await settle()
        await stage.crash("a")
        await supervisor.terminate_child("a")
        await anyio.sleep(2)
        assert states(supervisor) == {"a": "stopped", "b": "running"}


# -- stopping ----------------------------------------------------------------------


async def test_a_child_may_take_its_grace_to_stop(stage: Stage) -> None:
    events: list[Event] = []
    async with Supervisor([stage.slow("a", 4.9)], subscribers=[events.append]):
        await settle()
    assert now() == pytest.approx(4.9)
    assert stage.log == ["+a", "-a"]
    assert not any(isinstance(event, ChildKilled) for event in events)


async def test_a_child_that_may_take_for_ever_is_waited_for(stage: Stage) -> None:
    async with Supervisor([stage.slow("a", 1e6, shutdown=math.inf)]):
        await settle()
    assert now() == 1e6
    assert stage.log == ["+a", "-a"]


async def test_a_child_that_takes_longer_than_its_grace_is_killed(stage: Stage) -> None:
    events: list[Event] = []
    async with Supervisor(
        [stage.child("a"), stage.slow("b", 100, shutdown=2)], subscribers=[events.append], name="s"
    ) as supervisor:
        await settle()
        line = supervisor.which_child("b").line
        assert line is not None
        await supervisor.terminate_child("b")
        assert now() == 2
        assert supervisor.which_child("b").state is ChildState.STOPPED
        assert supervisor.tree().zombies == (("s/b",) if on_trio() else ())
        killed, exited = events[-2:]
        assert killed == ChildKilled("s", "b", line.id, zombie=on_trio())
        assert exited == ChildExited("s", "b", line.id, Killed(), stopping=True)
        if on_trio():
            assert str(supervisor.tree()).endswith("└─ s/b zombie")
            await anyio.sleep(200)
            assert supervisor.tree().zombies == ()
    assert on_trio() or stage.log == ["+a", "+b", "-a"]


async def test_a_child_that_swallows_its_cancellation_is_killed() -> None:
    swallowed = 0

    async def stubborn() -> None:
        nonlocal swallowed
        with anyio.CancelScope(shield=True):  # on trio that does it
            for _ in range(100):
                try:
                    await anyio.sleep(10)
                except anyio.get_cancelled_exc_class():
                    swallowed += 1

    async with Supervisor([stubborn]) as supervisor:
        await settle()
        await supervisor.stop()
        assert now() == 5
        assert swallowed == (0 if on_trio() else 1)


async def test_a_child_of_brutal_kill_is_not_asked() -> None:
    ends: list[type[BaseException]] = []

    async def run() -> None:
        try:
            await anyio.sleep_forever()
        except BaseException as exc:
            ends.append(type(exc))
            raise

    async with Supervisor([ChildSpec("a", run, shutdown=BRUTAL_KILL)]):
        await settle()
    assert now() == 0
    assert len(ends) == 1
    assert issubclass(ends[0], trio.Cancelled if on_trio() else GeneratorExit)


async def test_a_child_that_ended_its_device_itself_cannot_hang_its_supervisor() -> None:
    async def deaf() -> None:
        current_device().disconnect()
        await anyio.sleep_forever()

    async with Supervisor([deaf]):
        await settle()
    assert now() == 5


async def test_children_stop_one_at_a_time_each_with_a_grace_of_its_own(stage: Stage) -> None:
    async with Supervisor([stage.slow(f"{n}", 1, shutdown=1.5) for n in range(5)]):
        await settle()
    assert now() == 5
    assert stage.log[5:] == ["-4", "-3", "-2", "-1", "-0"]


async def test_one_deadline_holds_for_the_whole_tree(stage: Stage) -> None:
    inner = Supervisor([stage.slow("a", 100, shutdown=60), stage.slow("b", 2)], name="inner")
    middle = Supervisor([inner, stage.slow("c", 1)], name="middle")
    async with Supervisor([stage.child("d"), middle], stop_timeout=5):
        await settle()
        stage.new()
    assert now() == 5
    assert stage.log[:2] == ["-c", "-b"]
    assert "-d" in stage.log


async def test_a_child_that_fails_while_it_is_stopped_does_no_harm(stage: Stage) -> None:
    events: list[Event] = []
    error = ValueError("cleanup")

    async def untidy() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise error

    async with Supervisor(
        [stage.child("a"), untidy], max_restarts=0, subscribers=[events.append]
    ) as supervisor:
        await settle()
        await supervisor.terminate_child("untidy")
        assert states(supervisor) == {"a": "running", "untidy": "stopped"}
    exits = [event for event in events if isinstance(event, ChildExited)]
    assert [event.child for event in exits] == ["untidy", "a"]
    assert all(event.stopping for event in exits)


# -- the block ---------------------------------------------------------------------


async def test_cancelling_the_block_stops_all_children_and_goes_on(stage: Stage) -> None:
    with anyio.move_on_after(1) as scope:
        async with Supervisor([stage.slow("a", 2), stage.child("b")]):
            await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert now() == 3
    assert stage.log == ["+a", "+b", "-b", "-a"]


async def test_cancelling_the_block_by_asyncio_itself_is_balanced(stage: Stage) -> None:
    if on_trio():
        return
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1), Supervisor([stage.slow("a", 2)]):
            await anyio.sleep_forever()
    assert now() == 3
    assert stage.log == ["+a", "-a"]
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    await asyncio.sleep(0)


async def test_cancelling_the_start_stops_what_was_started(stage: Stage) -> None:
    with anyio.move_on_after(1) as scope:
        async with Supervisor([stage.child("a"), stage.starter("b", 10), stage.child("c")]):
            pytest.fail("it must not be entered")
    assert scope.cancelled_caught
    assert now() == 1
    assert stage.log == ["+a", "+b", "-b", "-a"]


async def test_cancelling_again_while_children_stop_does_not_leave_them(stage: Stage) -> None:
    async with anyio.create_task_group() as group:
        with anyio.CancelScope() as outer, anyio.CancelScope() as inner:

            async def cancel() -> None:
                await anyio.sleep(1)
                inner.cancel()
                await anyio.sleep(1)
                outer.cancel()

            group.start_soon(cancel)
            async with Supervisor([stage.slow("a", 4)]):
                await anyio.sleep_forever()
        assert now() == 5
        assert stage.log == ["+a", "-a"]


async def test_an_exception_in_the_block_stops_all_children_and_comes_out(stage: Stage) -> None:
    error = ValueError()
    with pytest.raises(ValueError) as caught:
        async with Supervisor([stage.child("a"), stage.slow("b", 1)]):
            await settle()
            raise error
    assert caught.value is error
    assert stage.log == ["+a", "+b", "-b", "-a"]


async def test_a_block_that_waits_for_some_other_device_gets_that_ones_crash(
    stage: Stage,
) -> None:
    other = Device()
    with pytest.raises(CascadeCrash) as caught:
        async with Supervisor([stage.child("a")]):
            current_device().link(other, LinkMode.MONITOR)
            await settle()
            other.disconnect(Killed())
            await anyio.sleep(10)
    assert caught.value.sender == other.id
    assert stage.log == ["+a", "-a"]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("grouped", [False, True])
async def test_what_is_meant_for_the_whole_program_stops_all_and_comes_out(
    stage: Stage, kind: type[BaseException], grouped: bool
) -> None:
    error: BaseException = kind()
    if grouped:
        error = BaseExceptionGroup("", [error])
    with pytest.raises(type(error)) as caught:
        async with Supervisor([stage.child("a"), stage.child("b", restart=TEMPORARY)]):
            await settle()
            stage.give_cue("b", error)
            await anyio.sleep(10)
    assert caught.value is error
    assert now() == 0
    assert stage.log == ["+a", "+b", "-b", "-a"]


@pytest.mark.parametrize("later", [False, True])
async def test_so_does_what_is_meant_for_the_whole_program_at_a_start(
    stage: Stage, later: bool
) -> None:
    async def interrupted(*, task_status: TaskStatus[None]) -> None:
        raise KeyboardInterrupt

    refused = False
    with pytest.raises(KeyboardInterrupt):
        async with Supervisor([stage.child("a"), *([] if later else [interrupted])]) as supervisor:
            try:
                await supervisor.start_child(interrupted)
            except NotRunningError:
                refused = True
                raise
    assert refused == later
    assert stage.log == ["+a", "-a"]


async def test_what_is_meant_for_the_whole_program_does_not_wait_for_a_start(
    stage: Stage,
) -> None:
    async def interrupted() -> None:
        await anyio.sleep(1)
        raise KeyboardInterrupt

    events: list[Event] = []
    with pytest.raises(KeyboardInterrupt):
        async with Supervisor([interrupted, stage.starter("b", 10)], subscribers=[events.append]):
            pytest.fail("it must not be entered")
    assert now() == 1
    assert stage.log == ["+b", "-b"]
    exits = [(event.child, event.stopping) for event in events if isinstance(event, ChildExited)]
    assert exits == [("b", True), ("interrupted", False)]


async def test_so_does_what_is_meant_for_the_whole_program_in_a_cleanup(stage: Stage) -> None:
    async def interrupted() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise KeyboardInterrupt

    for by_hand in (False, True):
        with pytest.raises(KeyboardInterrupt):
            async with Supervisor([stage.child("a"), interrupted]) as supervisor:
                await settle()
                if by_hand:
                    await supervisor.terminate_child("interrupted")
                    await anyio.sleep(10)
        assert now() == 0
        assert stage.new() == ["+a", "-a"]


async def test_what_the_block_raises_since_its_supervisor_has_failed_gives_way_to_the_failure(
    stage: Stage,
) -> None:
    with pytest.raises(MaxRestartsError) as caught:
        async with Supervisor([stage.child("a"), stage.slow("b", 2)], max_restarts=0) as supervisor:
            await settle()
            try:
                await stage.crash("a")
                await supervisor.wait()
            finally:
                assert now() == 0  # it does not wait for the children's cleanup
                await supervisor.start_child(stage.child("c"))
    assert isinstance(caught.value.__context__, NotRunningError)
    assert now() == 2


async def test_a_supervisor_can_run_again_but_not_twice_at_once(stage: Stage) -> None:
    supervisor = Supervisor([stage.child("a", restart=TEMPORARY)])
    for _ in range(2):
        async with supervisor:
            await settle()
            with pytest.raises(SupervisorError, match="already running"):
                async with supervisor:
                    pass
            assert states(supervisor) == {"a": "running"}
            await stage.end("a")
            assert states(supervisor) == {}
    assert stage.log == ["+a", "-a"] * 2


async def test_nothing_outlives_the_block(stage: Stage) -> None:
    def tasks() -> int:
        if on_trio():
            return trio.lowlevel.current_statistics().tasks_living
        return len(asyncio.all_tasks())

    def devices() -> int:
        gc.collect()
        return sum(isinstance(thing, Device) for thing in gc.get_objects())

    before = tasks(), devices()
    quiet: Any = {"subscribers": []}  # or the log records would keep what they tell of
    inner = Supervisor([stage.child("x"), stage.child("y")], name="inner", **quiet)
    for failing in (False, True):
        children: list[Any] = [stage.child("a"), inner, stage.child("b")]
        try:
            async with Supervisor(children, max_restarts=1, **quiet):
                await settle()
                await stage.crash("x")
                await stage.crash("a")
                if failing:
                    await stage.crash("b")
        except MaxRestartsError:
            assert failing
    await settle()
    assert (tasks(), devices()) == before


async def test_who_is_linked_with_the_supervisor_hears_how_it_ended(stage: Stage) -> None:
    me = Device()
    async with Supervisor([stage.child("a")]) as supervisor:
        line = supervisor.line()
        me.link(line, LinkMode.MONITOR)
    assert me.receive_nowait() == Disconnected(line.id, None)
    with pytest.raises(MaxRestartsError) as caught:
        async with Supervisor([stage.child("a")], max_restarts=0) as supervisor:
            line = supervisor.line()
            me.link(line, LinkMode.MONITOR)
            await settle()
            await stage.crash("a")
    assert me.receive_nowait() == Disconnected(line.id, Failed(caught.value))
    me.disconnect()


async def test_the_fault_of_a_stranger_does_not_concern_a_supervisor(stage: Stage) -> None:
    async with Supervisor([stage.child("a")]) as supervisor:
        stranger = Device()
        stranger.link(supervisor.line())
        stranger.disconnect(Killed())
        await anyio.sleep(1)
        assert states(supervisor) == {"a": "running"}


async def test_a_supervisor_that_is_asked_to_shut_down_through_its_line_stops(
    stage: Stage,
) -> None:
    async with Supervisor([stage.child("a")]) as supervisor:
        await settle()
        assert supervisor.line().shutdown()
        await supervisor.wait()
    assert stage.log == ["+a", "-a"]


async def test_a_child_that_waits_in_its_cleanup_for_the_stop_of_its_supervisor_is_told(
    stage: Stage,
) -> None:
    errors: list[SupervisorError] = []

    async def child() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            try:
                await top.stop()
            except SupervisorError as error:
                errors.append(error)

    inner = Supervisor([ChildSpec("child", child, shutdown=math.inf)], name="inner")
    top = Supervisor([inner], name="top")
    async with top:
        await settle()
    assert [str(error) for error in errors] == [
        "child 'inner' cannot wait for the stop: its supervisor 'top' is waiting for it to start "
        "or to stop"
    ]


async def test_a_child_that_has_nothing_to_do_may_say_so_without_task_status(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    async def idle() -> None:
        await anyio.sleep(1)
        raise Ignore

    async with Supervisor([idle, stage.child("a")], max_restarts=0) as supervisor:
        await anyio.sleep(2)
        assert states(supervisor) == {"idle": "stopped", "a": "running"}
    assert not caplog.records


async def test_a_parked_child_takes_the_restarts_that_it_has_spent_with_it(stage: Stage) -> None:
    children = [stage.child("noisy"), stage.child("quiet")]
    async with Supervisor(children, max_restarts=2, exhausted=Exhausted.PARK) as supervisor:
        for _ in range(3):
            await settle()
            await stage.crash("noisy")
        assert states(supervisor) == {"noisy": "parked", "quiet": "running"}
        await stage.crash("quiet")
        assert states(supervisor) == {"noisy": "parked", "quiet": "running"}


async def test_the_exception_that_ended_a_child_is_logged_with_its_traceback(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    error = ValueError("here")
    async with Supervisor([stage.child("a")]):
        await settle()
        await stage.crash("a", error)
    (record,) = caplog.records
    assert record.exc_info is not None
    assert record.exc_info[1] is error


async def test_run_serves_until_it_is_stopped(stage: Stage) -> None:
    supervisor = Supervisor([stage.child("a")])
    async with anyio.create_task_group() as group:
        assert await group.start(supervisor.run) is supervisor
        await settle()
        assert states(supervisor) == {"a": "running"}
        await supervisor.stop()
    assert stage.log == ["+a", "-a"]


async def test_a_child_may_stop_its_supervisor(stage: Stage) -> None:
    async def last() -> None:
        await anyio.sleep(1)
        await supervisor.stop()
        pytest.fail("it is stopped too")

    supervisor = Supervisor([stage.child("a"), last, stage.child("c")])
    await supervisor.run()
    assert now() == 1
    assert stage.log == ["+a", "+c", "-c", "-a"]


@pytest.mark.parametrize("block", [False, True])
async def test_a_supervisor_that_is_stopped_while_it_starts_does_not_enter_its_block(
    stage: Stage, block: bool
) -> None:
    async def last(*, task_status: TaskStatus[None]) -> None:
        await supervisor.stop()

    supervisor = Supervisor([stage.child("a"), last, stage.child("c")])
    if block:
        with pytest.raises(NotRunningError):
            async with supervisor:
                pytest.fail("it must not be entered")
    else:
        await supervisor.run()
    assert stage.log in (["+a", "-a"], [])


# -- the run-time calls ------------------------------------------------------------


async def test_children_can_be_added_at_run_time_and_come_last(stage: Stage) -> None:
    async with Supervisor([stage.child("a")], strategy=REST) as supervisor:
        info = await supervisor.start_child(stage.starter("b", 1))
        assert (info.id, info.state, info.value) == ("b", ChildState.RUNNING, "value of b")
        assert now() == 1
        await supervisor.start_child(stage.child("c"))
        await settle()
        stage.new()
        await stage.crash("b")
        assert stage.new() == ["-b", "-c", "+b"]
        await anyio.sleep(1.1)
    assert stage.log == ["b ready", "+c", "-c", "-b", "-a"]


async def test_a_child_that_cannot_be_added_is_not_kept(stage: Stage) -> None:
    stage.fails["b"] = [OSError("b cannot start")]
    async with Supervisor([stage.child("a")], max_restarts=0) as supervisor:
        with pytest.raises(StartError) as caught:
            await supervisor.start_child(stage.starter("b"))
        assert isinstance(caught.value.__cause__, OSError)
        assert states(supervisor) == {"a": "running"}


async def test_start_child_refuses_what_is_there_already_or_makes_no_sense(stage: Stage) -> None:
    async with Supervisor([stage.child("a"), stage.child("b")]) as supervisor:
        await supervisor.terminate_child("b")
        with pytest.raises(AlreadyStartedError, match="'a' of supervisor 'supervisor'"):
            await supervisor.start_child(stage.child("a"))
        with pytest.raises(AlreadyPresentError, match="restart_child"):
            await supervisor.start_child(stage.child("b"))
        with pytest.raises(SpecError):
            await supervisor.start_child(5)  # type: ignore[arg-type]
        with pytest.raises(SpecError, match="auto_shutdown"):
            await supervisor.start_child(stage.child("c", significant=True, restart=TEMPORARY))


async def test_terminate_child_waits_for_the_end_and_never_restarts(stage: Stage) -> None:
    children = [stage.slow("a", 2), stage.child("b", restart=TEMPORARY), stage.child("c")]
    async with Supervisor(children, strategy=ALL, max_restarts=0) as supervisor:
        await settle()
        await supervisor.terminate_child("a")
        assert now() == 2
        assert states(supervisor) == {"a": "stopped", "b": "running", "c": "running"}
        await supervisor.terminate_child("a")
        await supervisor.terminate_child("b")
        assert states(supervisor) == {"a": "stopped", "c": "running"}
        with pytest.raises(ChildNotFoundError):
            await supervisor.terminate_child("b")


async def test_restart_child_and_delete_child_want_a_child_that_is_down(stage: Stage) -> None:
    async with Supervisor([stage.starter("a"), stage.child("b")]) as supervisor:
        for call in (supervisor.restart_child, supervisor.delete_child):
            attempt: Callable[[str], Awaitable[object]] = call
            with pytest.raises(ChildRunningError):
                await attempt("a")
            with pytest.raises(ChildNotFoundError):
                await attempt("x")
        await supervisor.terminate_child("a")
        stage.fails["a"] = [OSError("a cannot start")]
        with pytest.raises(StartError):
            await supervisor.restart_child("a")
        assert states(supervisor) == {"a": "stopped", "b": "running"}
        info = await supervisor.restart_child("a")
        assert info.value == "value of a"
        assert states(supervisor) == {"a": "running", "b": "running"}
        await supervisor.terminate_child("a")
        await supervisor.delete_child("a")
        assert states(supervisor) == {"b": "running"}


async def test_children_are_listed_counted_and_shown(stage: Stage) -> None:
    spec = stage.child("a")
    inner = Supervisor([stage.child("x")], name="inner")
    async with Supervisor([spec, inner, stage.child("c")]) as supervisor:
        await settle()
        assert [info.id for info in supervisor.which_children()] == ["c", "inner", "a"]
        assert [info.is_supervisor for info in supervisor.which_children()] == [False, True, False]
        assert supervisor.count_children() == Counts(specs=3, active=3, supervisors=1, workers=2)
        await supervisor.terminate_child("inner")
        await supervisor.terminate_child("c")
        assert supervisor.count_children() == Counts(specs=3, active=1, supervisors=1, workers=2)
        assert supervisor.get_child_spec("a") is spec
        for look in (supervisor.get_child_spec, supervisor.which_child):
            with pytest.raises(ChildNotFoundError, match="has no child 'x'"):
                look("x")
        with pytest.raises(ChildNotFoundError):
            supervisor.get_child_spec([])  # type: ignore[arg-type]


async def test_every_call_on_a_supervisor_that_does_not_run_says_so(stage: Stage) -> None:
    supervisor = Supervisor([stage.child("a")], name="top")

    async def check() -> None:
        for call in (supervisor.terminate_child, supervisor.restart_child, supervisor.delete_child):
            attempt: Callable[[str], Awaitable[object]] = call
            with pytest.raises(NotRunningError, match="'top' is not running"):
                await attempt("a")
        with pytest.raises(NotRunningError):
            await supervisor.start_child(stage.child("b"))

    await check()
    for look in (supervisor.count_children, supervisor.which_children, supervisor.line):
        with pytest.raises(NotRunningError):
            look()
    for wait in (supervisor.stop, supervisor.wait):
        with pytest.raises(NotRunningError):
            await wait()
    assert str(supervisor.tree()) == "top (one_for_one, ended)"
    assert repr(supervisor) == "<Supervisor 'top' not running>"
    async with supervisor:
        assert repr(supervisor) == "<Supervisor 'top' running>"
        await supervisor.stop()
        await check()
        assert repr(supervisor) == "<Supervisor 'top' ended>"


async def test_looking_is_answered_while_a_child_starts_or_stops(stage: Stage) -> None:
    supervisor = Supervisor([stage.child("a"), stage.starter("b", 5), stage.slow("c", 3)])
    async with anyio.create_task_group() as group:
        group.start_soon(supervisor.run)
        await settle()
        assert states(supervisor) == {"a": "running", "b": "starting", "c": "stopped"}
        assert supervisor.tree().phase == "starting"
        await anyio.sleep(6)
        group.start_soon(supervisor.stop)
        await settle()
        assert states(supervisor) == {"a": "running", "b": "running", "c": "stopping"}
        assert supervisor.tree().phase == "stopping"
        assert now() == 6


async def test_a_change_asked_for_during_the_start_is_made_after_it(stage: Stage) -> None:
    supervisor = Supervisor([stage.child("a"), stage.starter("b", 5)])

    async def change() -> None:
        await supervisor.start_child(stage.child("c"))
        assert now() == 5

    async with anyio.create_task_group() as group:
        group.start_soon(supervisor.run)
        await settle()
        await change()
        assert list(states(supervisor)) == ["a", "b", "c"]
        await supervisor.stop()


async def test_a_child_that_calls_its_supervisor_from_its_start_is_told_so(stage: Stage) -> None:
    errors: list[str] = []

    async def caller(*, task_status: TaskStatus[None]) -> None:
        async def call() -> None:
            try:
                await supervisor.start_child(stage.child("x"))
            except SelfCallError as error:
                errors.append(str(error))

        async with anyio.create_task_group() as group:  # its own tasks count too
            group.start_soon(call)
        await call()
        assert supervisor.count_children().specs == 2  # looking is no harm
        task_status.started()
        await supervisor.start_child(stage.child("x"))
        await anyio.sleep_forever()

    supervisor = Supervisor([stage.child("a"), caller])
    async with supervisor:
        await settle()
        assert list(states(supervisor)) == ["a", "caller", "x"]
    assert len(errors) == 2
    assert "is waiting for it to start or to stop" in errors[0]


async def test_a_child_that_calls_its_supervisor_while_it_is_stopped_is_told_so(
    stage: Stage,
) -> None:
    errors: list[BaseException] = []

    async def caller() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                try:
                    await supervisor.delete_child("a")
                except SupervisorError as error:
                    errors.append(error)

    supervisor = Supervisor([stage.child("a"), caller])
    async with supervisor:
        await settle()
        await supervisor.terminate_child("caller")
        await supervisor.restart_child("caller")
        await settle()
    assert [type(error) for error in errors] == [SelfCallError, NotRunningError]


async def test_a_grandchild_that_calls_the_supervisor_above_during_its_start_is_told_so(
    stage: Stage,
) -> None:
    async def caller(*, task_status: TaskStatus[None]) -> None:
        await outer.start_child(stage.child("x"))

    outer = Supervisor([Supervisor([caller], name="inner")], name="outer")
    with pytest.raises(StartError) as caught:
        async with outer:
            pass
    inner_error = caught.value.__cause__
    assert isinstance(inner_error, StartError)
    assert isinstance(inner_error.__cause__, SelfCallError)


async def test_a_child_may_terminate_itself_and_its_siblings(stage: Stage) -> None:
    async def suicidal() -> None:
        await supervisor.terminate_child("a")
        await supervisor.terminate_child("suicidal")

    supervisor = Supervisor([stage.child("a"), suicidal])
    async with supervisor:
        await settle()
        assert states(supervisor) == {"a": "stopped", "suicidal": "stopped"}


async def test_a_call_that_is_cancelled_before_its_turn_does_nothing(stage: Stage) -> None:
    async with Supervisor([stage.slow("a", 4), stage.child("b")]) as supervisor:
        await settle()
        async with anyio.create_task_group() as group:
            group.start_soon(supervisor.terminate_child, "a")
            await settle()
            with anyio.move_on_after(1):
                await supervisor.terminate_child("b")
        assert now() == 4
        await settle()
        assert states(supervisor) == {"a": "stopped", "b": "running"}


async def test_calls_that_are_waiting_when_the_supervisor_ends_are_told_so(stage: Stage) -> None:
    refused: list[str] = []

    async def start(spec: ChildSpec) -> None:
        with pytest.raises(NotRunningError):
            await supervisor.start_child(spec)
        refused.append(spec.id)

    async with anyio.create_task_group() as group, Supervisor([stage.child("a")]) as supervisor:
        group.start_soon(start, stage.starter("b", 100))
        await settle()
        group.start_soon(start, stage.child("c"))
        await settle()
        await supervisor.stop()
    assert sorted(refused) == ["b", "c"]
    assert now() == 0
    assert stage.log == ["+a", "+b", "-b", "-a"]


# -- significant children ----------------------------------------------------------


async def test_the_end_of_any_significant_child_ends_the_supervisor_well(stage: Stage) -> None:
    children = [
        stage.child("a"),
        stage.child("b", restart=TRANSIENT, significant=True),
        stage.child("c", restart=TEMPORARY, significant=True),
    ]
    async with Supervisor(children, auto_shutdown=AutoShutdown.ANY_SIGNIFICANT) as supervisor:
        await settle()
        await stage.crash("b")  # is restarted
        assert supervisor.tree().phase == "running"
        await stage.end("b")
        await supervisor.wait()
        await settle()
        assert supervisor.tree().phase == "ended"
    assert stage.log == ["+a", "+b", "+c", "-b", "+b", "-b", "-c", "-a"]


async def test_the_end_of_the_last_significant_child_ends_the_supervisor(stage: Stage) -> None:
    children = [
        stage.child("a"),
        stage.child("b", restart=TRANSIENT, significant=True, backoff=STEADY),
        stage.child("c", restart=TEMPORARY, significant=True),
        stage.child("d", restart=TEMPORARY),
    ]
    async with Supervisor(children, auto_shutdown=AutoShutdown.ALL_SIGNIFICANT) as supervisor:
        await settle()
        await stage.end("d")
        await stage.crash("b")
        await stage.crash("c")  # b waits for its restart: it is not the last
        assert states(supervisor) == {"a": "running", "b": "waiting"}
        await anyio.sleep(1.1)
        assert states(supervisor) == {"a": "running", "b": "running"}
        await stage.end("b")
        await supervisor.wait()
    assert stage.log[-1] == "-a"


@pytest.mark.parametrize("strategy", Strategy)
async def test_a_significant_child_whose_restart_fails_and_that_is_parked_has_ended_for_good(
    stage: Stage, strategy: Strategy
) -> None:
    bad = stage.starter("b", restart=TRANSIENT, significant=True, exhausted=Exhausted.PARK)
    children = [stage.child("a"), bad, stage.child("c", restart=TEMPORARY, significant=True)]
    policy = AutoShutdown.ANY_SIGNIFICANT
    async with Supervisor(
        children, strategy=strategy, max_restarts=1, auto_shutdown=policy
    ) as supervisor:
        await settle()
        stage.fails["b"] = [OSError("b cannot start")]
        await stage.crash("b")
        await supervisor.wait()
    assert stage.log.count("+b") == 2
    assert stage.log[-1] == "-a"


async def test_terminating_a_significant_child_ends_nothing(stage: Stage) -> None:
    for policy in (AutoShutdown.ANY_SIGNIFICANT, AutoShutdown.ALL_SIGNIFICANT):
        children = [
            stage.child("a", restart=TRANSIENT, significant=True),
            stage.child("b", restart=TEMPORARY, significant=True),
            stage.child("c"),
        ]
        async with Supervisor(children, auto_shutdown=policy, strategy=ALL) as supervisor:
            await settle()
            await stage.crash("c")  # the temporary one is stopped and forgotten
            await supervisor.terminate_child("a")
            assert states(supervisor) == {"a": "stopped", "c": "running"}
            assert supervisor.tree().phase == "running"


@pytest.mark.parametrize("restart", [PERMANENT, TRANSIENT])
async def test_a_sub_supervisor_that_shut_itself_down_has_ended_well(
    stage: Stage, restart: Restart
) -> None:
    inner = Supervisor(
        [stage.child("a", restart=TEMPORARY, significant=True)],
        auto_shutdown=AutoShutdown.ANY_SIGNIFICANT,
        name="inner",
    )
    spec = ChildSpec("inner", inner.run, is_supervisor=True, restart=restart)
    async with Supervisor([spec]) as outer:
        await settle()
        await stage.end("a")
        assert outer.count_children().active == (restart is PERMANENT)


async def test_a_supervisor_whose_work_is_done_at_once_has_run_all_the_same() -> None:
    async def quick() -> None: ...

    supervisor = Supervisor(
        [ChildSpec("quick", quick, restart=TEMPORARY, significant=True)],
        auto_shutdown=AutoShutdown.ANY_SIGNIFICANT,
    )
    await supervisor.run()
    async with supervisor:
        await supervisor.wait()


# -- supervisors as children -------------------------------------------------------


async def test_a_supervisor_is_a_child_like_any_other(stage: Stage) -> None:
    inner = Supervisor([stage.starter("x", 2), stage.child("y")], name="inner")
    async with Supervisor([stage.child("a"), inner, stage.child("b")], name="outer") as outer:
        await settle()
        assert now() == 2
        assert stage.new() == ["+a", "+x", "x ready", "+y", "+b"]
        assert outer.which_child("inner").value is inner
        await stage.crash("y")
        assert stage.new() == ["-y", "+y"]
        assert str(outer.tree()) == (
            "outer (one_for_one, running)\n"
            "├─ a running\n"
            "├─ inner (one_for_one) running\n"
            "│  ├─ x running\n"
            "│  └─ y running, restarted 1x\n"
            "└─ b running"
        )
        await outer.terminate_child("inner")
        assert stage.new() == ["-y", "-x"]
        assert str(outer.tree()).split("\n")[2] == "├─ inner stopped"
        await outer.restart_child("inner")
        await settle()
    assert stage.new() == ["+x", "x ready", "+y", "-b", "-y", "-x", "-a"]


async def test_a_sub_supervisor_that_does_not_start_fails_the_start_above(stage: Stage) -> None:
    stage.fails["x"] = [OSError("x cannot start")]
    inner = Supervisor([stage.starter("x")], name="inner")
    with pytest.raises(StartError) as caught:
        async with Supervisor([stage.child("a"), inner]):
            pass
    assert isinstance(caught.value.__cause__, StartError)
    assert isinstance(caught.value.__cause__.__cause__, OSError)
    assert stage.log == ["+a", "+x", "-x", "-a"]


async def test_a_supervisor_that_is_killed_takes_its_children_along(stage: Stage) -> None:
    inner = Supervisor([stage.child("x"), stage.child("y")], name="inner")
    spec = ChildSpec("inner", inner.run, is_supervisor=True, shutdown=BRUTAL_KILL)
    async with Supervisor([spec]) as outer:
        await settle()
        line = inner.which_child("x").line
        await outer.terminate_child("inner")
        await settle()
        assert sorted(stage.new()) == ["+x", "+y", "-x", "-y"]
        assert line is not None
        with pytest.raises(LinkDownError):
            Device().link(line)
        await outer.restart_child("inner")
        await settle()
        assert stage.new() == ["+x", "+y"]


async def test_a_child_whose_own_supervisor_has_ended_is_stopped_within_its_grace(
    stage: Stage,
) -> None:
    inner = Supervisor([stage.child("x")], name="inner")

    async def run() -> None:
        async with inner:
            await settle()
        stage.log.append("alone")
        await anyio.sleep_forever()

    async with Supervisor([ChildSpec("a", run)], stop_timeout=3) as outer:
        await anyio.sleep(1)
        assert stage.new() == ["+x", "-x", "alone"]
        await outer.terminate_child("a")
        assert states(outer) == {"a": "stopped"}
        with pytest.raises(NotRunningError):
            inner.count_children()


# -- being watched -----------------------------------------------------------------


async def test_a_child_that_does_not_report_in_time_is_shown_killed_and_restarted(
    stage: Stage,
) -> None:
    events: list[Event] = []
    lives = 0

    async def hangs_at_times() -> None:
        nonlocal lives
        lives += 1
        for _ in range(5):
            await anyio.sleep(3)
            alive()
        if lives == 1:
            await anyio.sleep_forever()
        while True:
            await anyio.sleep(3)
            alive()

    async with Supervisor(
        [ChildSpec("a", hangs_at_times, watchdog=4)], subscribers=[events.append]
    ) as supervisor:
        await anyio.sleep(18.9)
        assert lives == 1
        await anyio.sleep(0.2)
        assert lives == 2
        await anyio.sleep(100)
        assert supervisor.which_child("a").restarts == 1
    unresponsive = [event for event in events if isinstance(event, ChildUnresponsive)]
    assert len(unresponsive) == 1
    assert "hangs_at_times" in unresponsive[0].stack


async def test_a_subscriber_reports_for_the_child_that_its_supervisor_lives_in(
    stage: Stage,
) -> None:
    beats: list[float] = []

    def beat(event: Event) -> None:
        alive()
        beats.append(now())

    inner = Supervisor([stage.child("x")], name="inner", subscribers=[beat])
    spec = ChildSpec("inner", inner.run, watchdog=2, is_supervisor=True)
    async with Supervisor([spec]) as outer:
        await settle()
        await anyio.sleep(1.5)
        await stage.crash("x")
        assert beats == [0, 1.5, 1.5]
        await anyio.sleep(1.9)
        assert outer.which_child("inner").restarts == 0
        await anyio.sleep(0.2)
        assert outer.which_child("inner").restarts == 1


async def test_only_a_child_can_report_that_it_is_alive() -> None:
    with pytest.raises(LookupError, match="no supervised child"):
        alive()


# -- being told --------------------------------------------------------------------


async def test_each_thing_that_happens_is_one_event(stage: Stage) -> None:
    events: list[Event] = []
    error = ValueError()
    async with Supervisor(
        [stage.child("a"), stage.starter("b")], name="s", subscribers=[events.append]
    ):
        await settle()
        stage.fails["b"] = [OSError("b cannot start")]
        await stage.crash("b", error)
    told = [(type(event), event.child) for event in events]
    assert told == [
        (ChildStarted, "a"),
        (ChildStarted, "b"),
        (ChildExited, "b"),
        (ChildStartFailed, "b"),
        (ChildStarted, "b"),
        (ChildExited, "b"),
        (ChildExited, "a"),
    ]
    assert isinstance(events[2], ChildExited)
    assert events[2].fault == Failed(error)
    assert not events[2].stopping
    assert all(event.supervisor == "s" for event in events)


async def test_a_subscriber_that_raises_harms_nobody(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    events: list[Event] = []

    def bad(event: Event) -> None:
        raise RuntimeError("bad subscriber")

    async with Supervisor([stage.child("a")], subscribers=[bad, events.append]):
        await settle()
    assert [type(event) for event in events] == [ChildStarted, ChildExited]
    assert len(caplog.records) == 2
    assert "a subscriber raised on 'ChildStarted'" in caplog.text


async def test_logging_is_told_at_the_level_that_an_operator_would_want(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "backplane.supervisor")
    with pytest.raises(MaxRestartsError):
        async with Supervisor(
            [stage.child("a"), stage.slow("b", 50, shutdown=1)],
            name="s",
            max_restarts=1,
            backoff=STEADY,
        ):
            await settle()
            await stage.crash("a")
            await anyio.sleep(2)
            await stage.crash("a")
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("DEBUG", "s/a started"),
        ("DEBUG", "s/b started"),
        ("ERROR", "s/a ended: Failed(ValueError('a'))"),
        ("INFO", "s/a restarts in 1 s (attempt 1)"),
        ("DEBUG", "s/a started again (1)"),
        ("ERROR", "s/a ended: Failed(ValueError('a'))"),
        ("CRITICAL", "s gives up on a: more than 1 restarts of all children within 5 s"),
        ("CRITICAL", "s/b could not be killed, and runs on as a zombie")
        if on_trio()
        else ("WARNING", "s/b did not stop in time and was killed"),
        ("WARNING", "s/b ended while it was stopped: Killed()"),
    ]
    assert all(hasattr(record, "event") for record in caplog.records)


async def test_expected_ends_are_silent_unless_debugging(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "backplane.supervisor")
    async with Supervisor([stage.child("a", restart=TEMPORARY), stage.child("b")]):
        await settle()
        await stage.end("a")
    assert caplog.records == []


@pytest.mark.parametrize(
    ("event", "level"),
    [
        (ChildStartFailed("s", "a", ValueError()), logging.ERROR),
        (ChildParked("s", "a", "why"), logging.ERROR),
        (ChildExited("s", "a", Device().id, None, stopping=False), logging.DEBUG),
        (ChildExited("s", "a", Device().id, None, False, unexpected=True), logging.WARNING),
        (ChildUnresponsive("s", "a", Device().id, 5, "stack"), logging.ERROR),
        (SupervisorGaveUp("s", "a", "why"), logging.CRITICAL),
    ],
)
async def test_other_events_have_their_levels_too(
    event: Event, level: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "backplane.supervisor")
    log_event(event)
    assert [record.levelno for record in caplog.records] == [level]
