"""Rows of OTP's contract, and faults of its other heirs, that no other test shows by name."""

# ruff: noqa: PT012 - what raises is the block of a supervisor, and things happen in it

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
import math
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from anyio.abc import TaskStatus

from backplane import Device, Disconnected, Failed, Killed, LinkMode
from backplane.supervisor import (
    BRUTAL_KILL,
    AutoShutdown,
    ChildExited,
    ChildNotFoundError,
    ChildSpec,
    ChildState,
    DynamicSupervisor,
    Event,
    Ignore,
    MaxChildrenError,
    MaxRestartsError,
    Restart,
    StartError,
    Strategy,
    Supervisor,
)

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.usefixtures("nothing_left"),
    pytest.mark.parametrize("anyio_backend", ["virtual asyncio", "virtual trio"], indirect=True),
]

TEMPORARY, TRANSIENT = Restart.TEMPORARY, Restart.TRANSIENT
QUIET: dict[str, Any] = {"subscribers": []}
"""Log records would keep what they tell of."""


def now() -> float:
    return anyio.current_time()


async def settle() -> None:
    for _ in range(60):
        await anyio.lowlevel.checkpoint()


class Stage:
    """Children that end when they are told, and take their time to clean up."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self._cues: dict[str, anyio.Event] = {}
        self._crashing = False

    def child(self, name: str, cleanup: float = 0, **fields: Any) -> ChildSpec:
        async def run() -> None:
            self.log.append(f"+{name}")
            cue = self._cues[name] = anyio.Event()
            try:
                await cue.wait()
                if self._crashing:
                    raise ValueError(name)
            finally:
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(cleanup)
                self.log.append(f"-{name}")

        return ChildSpec(name, run, **fields)

    async def end(self, name: str, *, crash: bool = False) -> None:
        self._crashing = crash
        self._cues[name].set()
        await settle()

    async def crash(self, name: str) -> None:
        await self.end(name, crash=True)

    def new(self) -> list[str]:
        log, self.log = self.log, []
        return log


@pytest.fixture
def stage() -> Stage:
    return Stage()


def states(supervisor: Supervisor | DynamicSupervisor) -> dict[str, str]:
    return {info.id: info.state.value for info in reversed(supervisor.which_children())}


async def fails(*, task_status: TaskStatus[None]) -> None:
    raise OSError("cannot start")


async def ignores(*, task_status: TaskStatus[None]) -> None:
    raise Ignore


# -- starting ----------------------------------------------------------------------


async def test_a_start_that_fails_stops_each_of_the_others_by_its_own_policy(
    stage: Stage,
) -> None:
    children: list[Any] = [
        stage.child("patient", cleanup=100, shutdown=math.inf),
        stage.child("brief", cleanup=1, shutdown=2),
        stage.child("late", cleanup=100, shutdown=3),
        stage.child("unasked", cleanup=100, shutdown=BRUTAL_KILL),
        fails,
    ]
    with pytest.raises(StartError):
        async with Supervisor(children, **QUIET):
            pass
    assert now() == 3 + 1 + 100
    assert stage.log[-1] == "-patient"
    await anyio.sleep(100)  # trio's zombies


async def test_a_temporary_child_that_ignores_leaves_its_id_to_another(stage: Stage) -> None:
    async with Supervisor(**QUIET) as supervisor:
        info = await supervisor.start_child(ChildSpec("a", ignores, restart=TEMPORARY))
        assert info.state is ChildState.STOPPED
        assert states(supervisor) == {}
        await supervisor.start_child(stage.child("a"))
        assert states(supervisor) == {"a": "running"}


async def test_a_child_that_could_not_be_added_leaves_its_id_to_another(stage: Stage) -> None:
    async with Supervisor(**QUIET) as supervisor:
        with pytest.raises(StartError):
            await supervisor.start_child(ChildSpec("a", fails))
        await supervisor.start_child(stage.child("a"))
        assert states(supervisor) == {"a": "running"}


async def test_children_see_the_context_in_which_their_supervisor_was_started() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="nothing")
    seen: list[str] = []

    async def look() -> None:
        seen.append(variable.get())
        variable.set("the child's own")
        if len(seen) == 1:
            raise ValueError
        await anyio.sleep_forever()

    variable.set("the starter's")
    async with Supervisor([Supervisor([look], name="inner", **QUIET)], **QUIET):
        variable.set("the block's")
        await settle()
    assert seen == ["the starter's", "the starter's"]
    assert variable.get() == "the block's"


# -- restarting --------------------------------------------------------------------


async def test_a_restarted_child_keeps_its_place_and_its_spec_and_gets_a_new_device(
    stage: Stage,
) -> None:
    async with Supervisor([stage.child(name) for name in "abc"], **QUIET) as supervisor:
        await settle()
        before, spec = supervisor.which_child("b"), supervisor.get_child_spec("b")
        await stage.crash("b")
        after = supervisor.which_child("b")
        assert list(states(supervisor)) == ["a", "b", "c"]
        assert supervisor.get_child_spec("b") is spec
        assert before.line is not None
        assert after.line is not None
        assert not before.line.connected
        assert after.line.connected
        stage.new()
    assert stage.log == ["-c", "-b", "-a"]


async def test_rest_for_one_does_not_start_an_elder_child_that_is_down(stage: Stage) -> None:
    children = [
        stage.child("a"),
        stage.child("b", restart=TRANSIENT),
        stage.child("c"),
        stage.child("d"),
    ]
    async with Supervisor(children, strategy=Strategy.REST_FOR_ONE, **QUIET) as supervisor:
        await settle()
        await supervisor.terminate_child("a")
        await stage.end("b")
        await stage.crash("c")
        assert states(supervisor) == {
            "a": "stopped",
            "b": "stopped",
            "c": "running",
            "d": "running",
        }


async def test_a_restart_begins_only_when_the_last_life_has_cleaned_up(stage: Stage) -> None:
    async with Supervisor([stage.child("a", cleanup=2), stage.child("b")], **QUIET):
        await settle()
        await stage.crash("a")
        assert stage.new() == ["+a", "+b"]
        await anyio.sleep(2.1)
        assert stage.new() == ["-a", "+a"]


@pytest.mark.parametrize("crash", [False, True])
@pytest.mark.parametrize("policy", [AutoShutdown.ANY_SIGNIFICANT, AutoShutdown.ALL_SIGNIFICANT])
async def test_a_temporary_significant_child_ends_its_supervisor_however_it_ends(
    stage: Stage, policy: AutoShutdown, crash: bool
) -> None:
    children = [stage.child("a"), stage.child("b", restart=TEMPORARY, significant=True)]
    async with Supervisor(children, auto_shutdown=policy, **QUIET) as supervisor:
        await settle()
        await stage.end("b", crash=crash)
        await supervisor.wait()
    assert stage.log == ["+a", "+b", "-b", "-a"]


async def test_a_significant_child_that_was_terminated_is_not_waited_for(stage: Stage) -> None:
    children = [
        stage.child("a", restart=TRANSIENT, significant=True),
        stage.child("b", restart=TRANSIENT, significant=True),
        stage.child("c"),
    ]
    policy = AutoShutdown.ALL_SIGNIFICANT
    async with Supervisor(children, auto_shutdown=policy, **QUIET) as supervisor:
        await settle()
        await supervisor.terminate_child("a")
        assert supervisor.tree().phase == "running"
        await stage.end("b")
        await supervisor.wait()
    assert stage.log == ["+a", "+b", "+c", "-a", "-b", "-c"]


async def test_a_supervisor_that_is_transient_and_was_asked_to_stop_stays_down(
    stage: Stage,
) -> None:
    inner = Supervisor([stage.child("x")], name="inner", **QUIET)
    spec = ChildSpec("inner", inner.run, restart=TRANSIENT, is_supervisor=True)
    async with Supervisor([spec], **QUIET) as outer:
        await settle()
        await inner.stop()
        await settle()
        assert states(outer) == {"inner": "stopped"}


# -- stopping ----------------------------------------------------------------------


async def test_stop_returns_when_all_have_cleaned_up_and_the_next_run_may_begin(
    stage: Stage,
) -> None:
    supervisor = Supervisor([stage.child("a", cleanup=2), stage.child("b", cleanup=1)], **QUIET)
    for turn in (1, 2):
        async with supervisor:
            await settle()
            await supervisor.stop()
            assert stage.new() == ["+a", "+b", "-b", "-a"]
            assert now() == 3 * turn


async def test_what_a_child_raises_while_it_is_stopped_is_reported() -> None:
    async def untidy() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise OSError("cannot close")

    faults: list[str] = []

    def note(event: Event) -> None:
        if isinstance(event, ChildExited):
            faults.append(repr(event.fault))

    async with Supervisor([untidy], subscribers=[note]):
        await settle()
    assert faults == [repr(Failed(OSError("cannot close")))]


@pytest.mark.parametrize("shutdown", [1, BRUTAL_KILL])
async def test_those_linked_with_a_child_hear_that_it_was_killed(
    stage: Stage, shutdown: Any
) -> None:
    me = Device()
    async with Supervisor([stage.child("a", cleanup=50, shutdown=shutdown)], **QUIET) as supervisor:
        await settle()
        line = supervisor.which_child("a").line
        assert line is not None
        me.link(line, LinkMode.MONITOR)
    await anyio.sleep(100)  # trio's zombie
    heard = me.receive_nowait()
    me.disconnect()
    assert heard == Disconnected(line.id, Killed())


async def test_what_cannot_be_killed_below_a_killed_supervisor_is_told_and_shut_off(
    stage: Stage, request: pytest.FixtureRequest
) -> None:
    inner = Supervisor([stage.child("x", cleanup=50, shutdown=60)], name="inner", **QUIET)
    spec = ChildSpec("inner", inner.run, shutdown=1, is_supervisor=True)
    async with Supervisor([spec], **QUIET) as outer:
        await settle()
        line = inner.which_child("x").line
        assert line is not None
        await outer.terminate_child("inner")
        seen = (line.connected, outer.tree().zombies)
    await anyio.sleep(100)  # trio's zombie
    assert seen == (False, ("inner/x",) if "trio" in request.node.name else ())


async def test_a_supervisor_whose_task_is_cancelled_while_it_stops_leaves_no_child(
    stage: Stage, request: pytest.FixtureRequest
) -> None:
    if "trio" in request.node.name:
        pytest.skip("there is no way to cancel some task of trio's")

    async def cancel() -> None:
        await anyio.sleep(1)
        for task in asyncio.all_tasks():
            if task.get_name() == "top (supervisor)":
                task.cancel()

    children = [stage.child("a"), stage.child("b", cleanup=2)]
    async with anyio.create_task_group() as group:
        with pytest.raises(asyncio.CancelledError):
            async with Supervisor(children, name="top", **QUIET):
                await settle()
                group.start_soon(cancel)
        assert stage.log == ["+a", "+b", "-b", "-a"]
        assert not {task.get_name() for task in asyncio.all_tasks()} & {"top/a", "top/b"}
    assert now() == 2


# -- being told --------------------------------------------------------------------


async def test_a_permanent_child_that_returns_is_no_silent_matter(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "backplane.supervisor")
    async with Supervisor([stage.child("a")], name="top"):
        await settle()
        await stage.end("a")
        assert stage.new() == ["+a", "-a", "+a"]
    assert ["top/a" in record.getMessage() for record in caplog.records] == [True]


@pytest.mark.parametrize(
    "fields", [{}, {"start_timeout": 100, "watchdog": 100}], ids=["plain", "with timers"]
)
async def test_ended_children_are_not_kept(fields: dict[str, Any]) -> None:
    async def brief(*, task_status: TaskStatus[None]) -> None:
        task_status.started()

    def children() -> int:
        gc.collect()
        return sum(type(thing).__name__ == "Child" for thing in gc.get_objects())

    before = children()
    async with Supervisor(**QUIET) as supervisor, DynamicSupervisor(**QUIET) as dynamic:
        for _ in range(20):
            await supervisor.start_child(ChildSpec("a", brief, restart=TEMPORARY, **fields))
            await dynamic.start_child(ChildSpec("a", brief, restart=TEMPORARY, **fields))
            await settle()
        kept = children() - before
    assert kept == 0


# -- dynamic -----------------------------------------------------------------------


async def test_dynamic_children_stop_all_at_once_each_within_a_grace_of_its_own(
    stage: Stage,
) -> None:
    async with DynamicSupervisor(**QUIET) as supervisor:
        for name, cleanup, shutdown in (("a", 1, 5), ("b", 100, 2), ("c", 3, 5)):
            await supervisor.start_child(stage.child(name, cleanup=cleanup, shutdown=shutdown))
        await settle()
        await supervisor.stop()
        assert now() == 3
        assert stage.log == ["+a", "+b", "+c", "-a", "-c"]
    await anyio.sleep(100)  # trio's zombie


async def test_a_dynamic_child_is_restarted_alone_and_addressed_by_its_device(
    stage: Stage,
) -> None:
    async with DynamicSupervisor(**QUIET) as supervisor:
        a, b = [await supervisor.start_child(stage.child(name)) for name in "ab"]
        await settle()
        await stage.crash("a")
        assert stage.new() == ["+a", "+b", "-a", "+a"]
        assert a.line is not None
        assert b.line is not None
        with pytest.raises(ChildNotFoundError):
            await supervisor.terminate_child(a.line)  # that life is over
        await supervisor.terminate_child(a)
        await supervisor.terminate_child(b.line)
        with pytest.raises(ChildNotFoundError):
            await supervisor.terminate_child(b)
        assert supervisor.count_children().specs == 0


async def test_a_dynamic_child_that_ignores_its_restart_is_forgotten() -> None:
    starts = 0

    async def once(*, task_status: TaskStatus[None]) -> None:
        nonlocal starts
        starts += 1
        if starts > 1:
            raise Ignore
        task_status.started()
        raise ValueError

    async with DynamicSupervisor(max_children=1, **QUIET) as supervisor:
        await supervisor.start_child(once)
        await settle()
        assert (starts, supervisor.count_children().specs) == (2, 0)
        await supervisor.start_child(anyio.sleep_forever)


async def test_no_dynamic_child_beyond_the_maximum_is_run(stage: Stage) -> None:
    async with DynamicSupervisor(max_children=1, **QUIET) as supervisor:
        await supervisor.start_child(stage.child("a"))
        with pytest.raises(MaxChildrenError):
            await supervisor.start_child(stage.child("b"))
        await settle()
        await stage.crash("a")
        with pytest.raises(MaxChildrenError):
            await supervisor.start_child(stage.child("b"))
        assert stage.log == ["+a", "-a", "+a"]


async def test_a_dynamic_supervisor_that_gives_up_stops_the_others_and_its_block(
    stage: Stage,
) -> None:
    with pytest.raises(MaxRestartsError):
        async with DynamicSupervisor(max_restarts=1, **QUIET) as supervisor:
            for name in "ab":
                await supervisor.start_child(stage.child(name))
            await settle()
            await stage.crash("a")
            await stage.crash("b")
    assert sorted(stage.log) == ["+a", "+a", "+b", "-a", "-a", "-b"]
