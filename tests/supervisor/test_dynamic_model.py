"""Whatever is done to a dynamic supervisor, its children do as a naive model says."""

from __future__ import annotations

import functools
import math
import random
from dataclasses import dataclass, field

import anyio
import anyio.lowlevel
import pytest
from anyio.abc import TaskGroup, TaskStatus
from hypothesis import given, settings
from hypothesis import strategies as st

from backplane import testing
from backplane.supervisor import (
    Backoff,
    ChildInfo,
    ChildNotFoundError,
    ChildRestartingError,
    ChildRunningError,
    ChildSpec,
    DynamicSupervisor,
    Exhausted,
    MaxChildrenError,
    MaxRestartsError,
    NotRunningError,
    Restart,
    StartError,
)

OPERATIONS = ["start", "start", "crash", "crash", "crash", "end", "terminate", "old", "again",
    "fail", "advance", "advance"]  # fmt: skip
Operation = tuple[str, int, Restart, float]

START_SECONDS = 1.0
START_TIMEOUT = 2.0
WAIT = 1.5
MOST = 4


def own(name: str) -> float:
    """A little time of each child's own, so that no two things ever happen at once."""
    return random.Random(name).random() / 100


@dataclass(eq=False)
class Modelled:
    """What a child ought to be."""

    name: str
    kind: Restart
    slow: bool
    state: str = "running"
    restarts: int = 0
    until: float = math.inf
    """When its state changes by itself: its start or its wait is over."""
    fails: list[str] = field(default_factory=list)
    """What its next starts do, instead of succeeding."""


class Model:
    """What ought to happen, in the order of its time."""

    def __init__(self, max_restarts: int, exhausted: Exhausted, backoff: bool) -> None:
        self.max_restarts = max_restarts
        self.exhausted = exhausted
        self.backoff = backoff
        self.children: list[Modelled] = []
        self.spent: list[float] = []
        self.now = 0.0
        self.gave_up = False

    def launch(self, child: Modelled) -> None:
        child.state, child.until = "running", math.inf
        if child.slow:
            child.state = "starting"
            late = child.fails[:1] == ["late"]
            child.until = self.now + own(child.name) + (START_TIMEOUT if late else START_SECONDS)

    def wants_restart(self, child: Modelled) -> None:
        self.spent = [time for time in self.spent if self.now - time <= 5] + [self.now]
        if len(self.spent) <= self.max_restarts:
            if self.backoff:
                child.state, child.until = "waiting", self.now + own(child.name) + WAIT
            else:
                child.restarts += 1
                self.launch(child)
        elif self.exhausted is Exhausted.PARK:
            child.state, child.until = "parked", math.inf
            self.spent.clear()  # what it has spent is no burden on the others
        else:
            child.state, child.until = "stopped", math.inf
            self.gave_up = True

    def end(self, child: Modelled, *, well: bool) -> None:
        if child.kind is Restart.PERMANENT or (child.kind is Restart.TRANSIENT and not well):
            self.wants_restart(child)
        else:
            self.children.remove(child)

    def advance(self, until: float) -> None:
        while not self.gave_up:
            due = min((child.until for child in self.children), default=math.inf)
            if due > until:
                break
            self.now = due
            child = next(child for child in self.children if child.until == due)
            self.go_on(child)
        self.now = until

    def go_on(self, child: Modelled) -> None:
        if child.state == "waiting":
            child.restarts += 1
            self.launch(child)
            return
        how = child.fails.pop(0) if child.fails else "well"
        if how == "well":
            child.state, child.until = "running", math.inf
        elif child.restarts == 0:
            self.children.remove(child)
        else:
            self.wants_restart(child)


class Stage:
    """The real children, which end when they are told."""

    def __init__(self) -> None:
        self.alive: list[str] = []
        self.cues: dict[str, anyio.Event] = {}
        self.crashing = False
        self.fails: dict[str, list[str]] = {}

    async def plain(self, name: str) -> None:
        cue = self.cues[name] = anyio.Event()
        self.alive.append(name)
        try:
            await cue.wait()
            if self.crashing:
                raise ValueError(name)
        finally:
            self.alive.remove(name)

    async def slow(self, name: str, *, task_status: TaskStatus[None]) -> None:
        how = self.fails[name].pop(0) if self.fails[name] else "well"
        self.alive.append(name)
        try:
            await anyio.sleep(100 if how == "late" else START_SECONDS + own(name))
            if how == "fail":
                raise OSError(name)
        finally:
            self.alive.remove(name)
        task_status.started()
        await self.plain(name)


class Play:
    """One history, on both."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.stage = Stage()
        self.infos: dict[str, list[ChildInfo]] = {}

    async def run(self, operations: list[Operation]) -> None:
        model = self.model
        supervisor = DynamicSupervisor(
            max_children=MOST,
            max_restarts=model.max_restarts,
            max_seconds=5,
            exhausted=model.exhausted,
            subscribers=[],
        )
        gave_up = False
        async with anyio.create_task_group() as tg:
            try:
                async with supervisor:
                    for count, operation in enumerate(operations):
                        await self.do(supervisor, tg, f"c{count}", operation)
                        if model.gave_up:
                            break
                        await self.check(supervisor)
            except MaxRestartsError:
                gave_up = True
            assert self.stage.alive == []
            assert gave_up == (model.gave_up and model.exhausted is Exhausted.ESCALATE)

    async def check(self, supervisor: DynamicSupervisor) -> None:
        for _ in range(40):
            await anyio.lowlevel.checkpoint()
        model = self.model
        infos = list(reversed(supervisor.which_children()))
        assert anyio.current_time() == pytest.approx(model.now)
        assert [(info.id, info.state.value, info.restarts) for info in infos] == [
            (child.name, child.state, child.restarts) for child in model.children
        ]
        up = [child.name for child in model.children if child.state in ("running", "starting")]
        assert sorted(self.stage.alive) == sorted(up)
        assert supervisor.count_children().active == len(up)
        assert supervisor.count_children().specs == len(model.children)
        for info in infos:
            known = self.infos.setdefault(info.id, [])
            if not known or known[-1].line != info.line:
                known.append(info)
            assert info.key == known[0].key

    async def do(
        self,
        supervisor: DynamicSupervisor,
        tg: TaskGroup,
        new: str,
        operation: Operation,
    ) -> None:
        what, number, kind, seconds = operation
        model, stage = self.model, self.stage
        if what == "advance":
            model.advance(model.now + seconds)
            await self.pass_by(supervisor, seconds)
            return
        if what == "start" or not model.children:
            await self.start(supervisor, tg, new, kind, number)
            return
        child = model.children[number % len(model.children)]
        known = self.infos[child.name]
        match what:
            case "crash" | "end" if child.state == "running":
                stage.crashing = what == "crash"
                model.end(child, well=what == "end")
                stage.cues[child.name].set()
                await self.pass_by(supervisor, 0)
            case "terminate":
                model.children.remove(child)
                line = known[-1].line
                assert line is not None
                refs = (known[0], known[-1], line, line.id)
                await supervisor.terminate_child(refs[number % 4])
            case "old" if len(known) > 1:
                line = known[number % (len(known) - 1)].line
                assert line is not None
                with pytest.raises(ChildNotFoundError):
                    await supervisor.terminate_child(line)
            case "again":
                await self.again(supervisor, tg, child)
            case "fail":
                how = ["late", "fail"][number % 2]
                if child.slow and child.state != "starting":
                    child.fails.append(how)
                    stage.fails[child.name].append(how)
            case _:  # what is down cannot end
                pass

    async def pass_by(self, supervisor: DynamicSupervisor, seconds: float) -> None:
        """Let time pass; where the supervisor ends by that, wait for it."""
        await anyio.sleep(seconds)
        if self.model.gave_up:
            with anyio.fail_after(100):
                await supervisor.wait()
            if self.model.exhausted is Exhausted.ESCALATE:
                await anyio.sleep(1000)  # it cancels the block

    async def start(
        self,
        supervisor: DynamicSupervisor,
        tg: TaskGroup,
        name: str,
        kind: Restart,
        number: int,
    ) -> None:
        model, stage = self.model, self.stage
        slow, how = number % 2 == 1, ["well", "well", "late", "fail"][number % 4]
        run = functools.partial(stage.slow if slow else stage.plain, name)
        wait = WAIT + own(name)
        spec = ChildSpec(
            name,
            run,
            restart=kind,
            start_timeout=START_TIMEOUT + own(name),
            backoff=Backoff(wait, 1, wait, 0) if model.backoff else None,
        )
        if len(model.children) >= MOST:
            with pytest.raises(MaxChildrenError):
                await supervisor.start_child(spec)
            return
        fails = [how] if slow and how != "well" else []
        stage.fails[name] = list(fails)
        child = Modelled(name, kind, slow, fails=fails)
        model.children.append(child)
        model.launch(child)

        async def start() -> None:
            try:
                await supervisor.start_child(spec)
            except (StartError, NotRunningError):
                pass  # as the model says, too

        tg.start_soon(start)

    async def again(self, supervisor: DynamicSupervisor, tg: TaskGroup, child: Modelled) -> None:
        info = self.infos[child.name][0]
        if child.state != "parked":
            waits = child.state == "waiting"
            with pytest.raises(ChildRestartingError if waits else ChildRunningError):
                await supervisor.restart_child(info)
            return
        child.restarts += 1
        self.model.launch(child)

        async def restart() -> None:
            try:
                await supervisor.restart_child(info)
            except (StartError, NotRunningError):
                pass  # as the model says, too

        tg.start_soon(restart)


async def play(
    max_restarts: int, exhausted: Exhausted, backoff: bool, operations: list[Operation]
) -> None:
    await Play(Model(max_restarts, exhausted, backoff)).run(operations)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@settings(max_examples=min(200, settings().max_examples))  # each is a run of a loop
@given(
    max_restarts=st.sampled_from([0, 1, 10]),
    exhausted=st.sampled_from([Exhausted.PARK, *Exhausted]),
    backoff=st.booleans(),
    operations=st.lists(
        st.tuples(
            st.sampled_from(OPERATIONS),
            st.integers(0, 11),
            st.sampled_from(Restart),
            st.sampled_from([0.25, 0.75, 1.25, 2.5, 6.75]),
        ),
        min_size=6,
        max_size=20,
    ),
)
def test_any_history_of_ends_calls_and_time_goes_as_it_ought_to(
    backend: str,
    max_restarts: int,
    exhausted: Exhausted,
    backoff: bool,
    operations: list[Operation],
) -> None:
    testing.run(play, max_restarts, exhausted, backoff, operations, backend=backend)
