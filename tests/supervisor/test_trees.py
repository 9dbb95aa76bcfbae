"""A tree of supervisors, whatever happens in it, does what a naive reading of OTP says.

The model below is written from the contract alone, and shares no code with the
library: recursion, lists, and a count of all restarts that were ever made. Each
thing happens at a time of its own, so that there is one right order for all
that follows from it. Where the library goes beyond OTP, the model says how: a
supervisor that gave up has *crashed*, also to a parent that restarts it only
then; ``Permanent`` spends no restart, and is exhausted at once; ``PARK`` leaves
the one child down and its siblings alone; ``STOP`` ends the supervisor *well*.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import anyio
import pytest
from anyio.abc import TaskStatus
from hypothesis import event as note
from hypothesis import given, settings
from hypothesis import strategies as st

from backplane import Failed, testing
from backplane.supervisor import (
    AutoShutdown,
    Budget,
    ChildExited,
    ChildParked,
    ChildSpec,
    ChildStarted,
    ChildStartFailed,
    Event,
    Exhausted,
    MaxRestartsError,
    Permanent,
    Restart,
    StartError,
    Strategy,
    Supervisor,
    SupervisorGaveUp,
)

pytestmark = pytest.mark.usefixtures("nothing_left")

# -- what is drawn -----------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """A child: a worker, or a supervisor with children of its own."""

    restart: Restart = Restart.PERMANENT
    significant: bool = False
    own_budget: tuple[int, float] | None = None
    own_exhausted: Exhausted | None = None
    reports: bool = False
    team: Team | None = None


@dataclass(frozen=True)
class Team:
    """A supervisor."""

    strategy: Strategy
    budget: tuple[int, float]
    auto_shutdown: AutoShutdown
    exhausted: Exhausted
    children: tuple[Plan, ...]

    def named(self, name: str) -> Iterator[tuple[str, Plan]]:
        """The children with their names, which tell where in the tree they are."""
        for n, plan in enumerate(self.children):
            legal = (
                plan.restart is not Restart.PERMANENT
                and self.auto_shutdown is not AutoShutdown.NEVER
            )
            yield f"{name}.{n}", replace(plan, significant=plan.significant and legal)

    def workers(self, name: str) -> Iterator[str]:
        """The names of all workers."""
        for child, plan in self.named(name):
            if plan.team is None:
                yield child
            else:
                yield from plan.team.workers(child)


@dataclass(frozen=True)
class Happening:
    """A worker ends; and of the next starts of another one some fail."""

    wait: int
    worker: int | None
    """Which of those that run; None: the same as last time, if it does."""
    how: str
    failing: int
    failures: tuple[str, ...]


BUDGETS = st.tuples(st.integers(0, 3), st.sampled_from([2.0, 4.0, 20.0]))
HOW = ["well", "crash", "crash", "crash", "crash", "permanent"]
SEVERAL = ["crash", "crash", "crash", "permanent"]


def plans(teams: st.SearchStrategy[Team] | None) -> st.SearchStrategy[Plan]:
    return st.builds(
        Plan,
        restart=st.sampled_from([Restart.PERMANENT, *Restart]),
        significant=st.booleans(),
        own_budget=st.none() | st.none() | BUDGETS,
        own_exhausted=st.none() | st.none() | st.sampled_from(Exhausted),
        reports=st.booleans(),
        team=st.none() if teams is None else st.none() | teams,
    )


def teams_of(below: st.SearchStrategy[Team] | None) -> st.SearchStrategy[Team]:
    return st.builds(
        Team,
        strategy=st.sampled_from(Strategy),
        budget=BUDGETS,
        auto_shutdown=st.sampled_from(AutoShutdown),
        exhausted=st.sampled_from([Exhausted.ESCALATE, *Exhausted]),
        children=st.lists(plans(below), min_size=1, max_size=4).map(tuple),
    )


TREES = teams_of(teams_of(teams_of(None)))
HAPPENINGS = st.builds(
    Happening,
    wait=st.integers(0, 3),
    worker=st.none() | st.integers(0, 11),
    how=st.sampled_from(HOW),
    failing=st.integers(0, 11),
    failures=st.just(()) | st.lists(st.sampled_from(SEVERAL), max_size=3).map(tuple),
)

# -- what ought to happen ----------------------------------------------------------


@dataclass
class World:
    """What the runs of all supervisors of a model have in common."""

    work: list[str] = field(default_factory=list)
    """``+a`` and ``-a``: a worker's code has begun, and is over."""
    told: list[str] = field(default_factory=list)
    failures: dict[str, list[str]] = field(default_factory=dict)
    now: float = 0.0


@dataclass
class Entry:
    """A child that a supervisor knows."""

    name: str
    plan: Plan
    up: bool = False
    parked: bool = False
    starts: int = 0
    spent: list[float] = field(default_factory=list)
    run: Run | None = None


class Run:
    """One run of a supervisor. Its end is told by a word: "well" or "crash"."""

    def __init__(self, world: World, name: str, team: Team) -> None:
        self.world = world
        self.name = name
        self.team = team
        self.entries = [Entry(child, plan) for child, plan in team.named(name)]
        self.spent: list[float] = []

    def tell(self, what: str, entry: Entry) -> None:
        self.world.told.append(f"{what} {entry.name}")

    # Starting and stopping.

    def start_all(self) -> bool:
        for entry in list(self.entries):
            if self.start(entry) is not None:
                self.stop_all()
                return False
        return True

    def start(self, entry: Entry) -> str | None:
        """Start a child; if that fails, say how."""
        entry.starts += 1
        failure = None
        if entry.plan.team is not None:
            entry.run = Run(self.world, entry.name, entry.plan.team)
            failure = None if entry.run.start_all() else "crash"
        else:
            self.world.work.append(f"+{entry.name}")
            failures = self.world.failures.get(entry.name)
            if entry.plan.reports and failures:
                failure = failures.pop(0)
                self.world.work.append(f"-{entry.name}")
        if failure is not None:
            self.tell("not started", entry)
            return failure
        entry.up, entry.parked = True, False
        self.tell(f"started {entry.starts - 1}", entry)
        return None

    def stop(self, entry: Entry) -> None:
        if entry.up:
            if entry.run is not None:
                entry.run.stop_all()
            else:
                self.world.work.append(f"-{entry.name}")
            entry.up = False
            self.tell("stopped", entry)

    def stop_all(self) -> None:
        for entry in reversed(self.entries):
            self.stop(entry)

    # What follows when a child has ended by itself.

    def child_ended(self, entry: Entry, how: str) -> str | None:
        """Do what follows; say how the supervisor ends, if it does."""
        entry.up = False
        self.tell("ended" if how == "well" else "failed", entry)
        end = self.reaction(entry, how)
        if end is not None:
            self.stop_all()
        return end

    def reaction(self, entry: Entry, how: str) -> str | None:
        restart = entry.plan.restart
        if restart is Restart.PERMANENT or (restart is Restart.TRANSIENT and how != "well"):
            verdict = self.spend(entry, how)
            if verdict == "restart":
                return self.restart(entry)
            if verdict != "parked":
                return verdict
        elif restart is Restart.TEMPORARY:
            self.entries.remove(entry)
        return "well" if self.shuts_down(entry, []) else None

    def shuts_down(self, gone: Entry, to_come: list[Entry]) -> bool:
        """Whether a supervisor ends since a child is gone; others may be about to start."""
        if not gone.plan.significant:
            return False
        left = any(other.plan.significant for other in self.entries if other.up or other in to_come)
        return self.team.auto_shutdown is AutoShutdown.ANY_SIGNIFICANT or not left

    def spend(self, entry: Entry, how: str) -> str:
        """Say what is to be done with a child that has to be restarted."""
        shared = how != "permanent" and not entry.plan.own_budget
        if how != "permanent":
            own = entry.plan.own_budget
            most, seconds = own or self.team.budget
            spent = entry.spent if own else self.spent
            if sum(self.world.now - time <= seconds for time in spent) < most:
                spent.append(self.world.now)
                return "restart"
        match entry.plan.own_exhausted or self.team.exhausted:
            case Exhausted.PARK:
                entry.parked = True
                if shared:
                    self.spent.clear()
                self.tell("parked", entry)
                return "parked"
            case Exhausted.STOP:
                self.tell("gave up on", entry)
                return "well"
            case Exhausted.ESCALATE:
                self.tell("gave up on", entry)
                return "crash"

    def restart(self, entry: Entry) -> str | None:
        """Stop those that the strategy says, and start them; say how the supervisor ends."""
        at = self.entries.index(entry)
        group = {
            Strategy.ONE_FOR_ONE: [entry],
            Strategy.ONE_FOR_ALL: list(self.entries),
            Strategy.REST_FOR_ONE: self.entries[at:],
        }[self.team.strategy]
        for each in reversed(group):
            self.stop(each)
            if each.plan.restart is Restart.TEMPORARY:
                self.entries.remove(each)
        group = [each for each in group if each in self.entries and not each.parked]
        end = None
        while group:
            each = group.pop(0)
            failure = self.start(each)
            if failure is not None:
                verdict = self.spend(each, failure)
                if verdict == "restart":
                    return end or self.restart(each)
                if verdict != "parked":
                    return verdict
                if self.shuts_down(each, group):
                    end = "well"
        return end


class Model:
    """The whole tree."""

    def __init__(self, team: Team) -> None:
        self.world = World()
        self.root = Run(self.world, "top", team)
        self.end: str | None = None
        """How the root has ended, if it has."""

    def running(self) -> list[str]:
        return [] if self.end else [path[-1][1].name for path in self.paths(self.root)]

    def paths(self, run: Run) -> Iterator[list[tuple[Run, Entry]]]:
        """The way to each worker that runs."""
        for entry in run.entries:
            if entry.up and entry.run is None:
                yield [(run, entry)]
            elif entry.up and entry.run is not None:
                for path in self.paths(entry.run):
                    yield [(run, entry), *path]

    def worker_ends(self, name: str, how: str) -> None:
        path = next(path for path in self.paths(self.root) if path[-1][1].name == name)
        self.world.work.append(f"-{name}")
        for run, entry in reversed(path):
            end = run.child_ended(entry, how)
            if end is None:
                return
            how = end
        self.end = how


# -- what happens ------------------------------------------------------------------


class Stage:
    """The real tree, whose workers end when they are told."""

    def __init__(self) -> None:
        self.work: list[str] = []
        self.told: list[str] = []
        self.failures: dict[str, list[str]] = {}
        self.cues: dict[str, anyio.Event] = {}
        self.how = "well"

    async def run(self, name: str) -> None:
        self.work.append(f"+{name}")
        await self._serve(name)

    async def report(self, name: str, *, task_status: TaskStatus[None]) -> None:
        self.work.append(f"+{name}")
        failures = self.failures.get(name)
        if failures:
            self.work.append(f"-{name}")
            self._raise(failures.pop(0))
        task_status.started()
        await self._serve(name)

    async def _serve(self, name: str) -> None:
        cue = self.cues[name] = anyio.Event()
        try:
            await cue.wait()
            self._raise(self.how)
        finally:
            self.work.append(f"-{name}")

    def _raise(self, how: str) -> None:
        if how == "crash":
            raise ValueError
        if how == "permanent":
            raise Permanent

    def supervisor(self, name: str, team: Team) -> Supervisor:
        most, seconds = team.budget
        return Supervisor(
            [self.spec(*child) for child in team.named(name)],
            strategy=team.strategy,
            max_restarts=most,
            max_seconds=seconds,
            auto_shutdown=team.auto_shutdown,
            exhausted=team.exhausted,
            name=name,
            subscribers=[self.tell],
        )

    def spec(self, name: str, plan: Plan) -> ChildSpec:
        if plan.team is not None:
            run = self.supervisor(name, plan.team).run
        else:
            run = functools.partial(self.report if plan.reports else self.run, name)
        return ChildSpec(
            name,
            run,
            restart=plan.restart,
            significant=plan.significant,
            budget=None if plan.own_budget is None else Budget(*plan.own_budget),
            exhausted=plan.own_exhausted,
            is_supervisor=plan.team is not None,
        )

    def tell(self, event: Event) -> None:
        match event:
            case ChildStarted():
                what = f"started {event.restarts}"
            case ChildExited(stopping=True):
                assert event.fault is None
                what = "stopped"
            case ChildExited():
                assert event.fault is None or isinstance(event.fault, Failed)
                what = "ended" if event.fault is None else "failed"
            case ChildStartFailed():
                what = "not started"
            case ChildParked():
                what = "parked"
            case SupervisorGaveUp():
                what = "gave up on"
            case _:
                what = repr(event)
        self.told.append(f"{what} {getattr(event, 'child', '')}")


class Play:
    """One history, in the model and for real. Something happens at each full second."""

    def __init__(self, team: Team, broken: int | None) -> None:
        self.model = Model(team)
        self.stage = Stage()
        self.names = list(team.workers("top"))
        self.last = ""
        if broken is not None:
            self.let_fail(broken, ("crash",))

    def let_fail(self, worker: int, failures: tuple[str, ...]) -> None:
        for either in (self.model.world, self.stage):
            if self.names:
                name = self.names[worker % len(self.names)]
                either.failures.setdefault(name, []).extend(failures)

    def check(self) -> None:
        assert self.stage.told == self.model.world.told
        assert self.stage.work == self.model.world.work

    async def next_second(self) -> None:
        await anyio.sleep(0.5)
        self.check()
        await anyio.sleep(0.5)
        self.model.world.now += 1
        assert anyio.current_time() == self.model.world.now

    async def let_happen(self, happening: Happening) -> None:
        for _ in range(happening.wait):
            await self.next_second()
        running = self.model.running()
        if running:
            self.let_fail(happening.failing, happening.failures)
            if happening.worker is not None or self.last not in running:
                self.last = running[(happening.worker or 0) % len(running)]
            self.stage.how = happening.how
            self.stage.cues[self.last].set()
            self.model.worker_ends(self.last, happening.how)
        await self.next_second()

    async def __call__(self, team: Team, happenings: list[Happening]) -> str:
        """Play it, and say how it ended."""
        started = self.model.root.start_all()
        supervisor = self.stage.supervisor("top", team)
        try:
            async with supervisor:
                assert started
                await self.next_second()
                for happening in happenings:
                    await self.let_happen(happening)
                assert supervisor.tree().phase == ("ended" if self.model.end else "running")
        except StartError:
            assert not started
            return "did not start"
        except MaxRestartsError:
            assert self.model.end == "crash"
            return "gave up"
        assert self.model.end in (None, "well")
        return "shut itself down" if self.model.end else "was stopped"


async def play(team: Team, broken: int | None, happenings: list[Happening]) -> None:
    play = Play(team, broken)
    end = await play(team, happenings)
    if end == "was stopped":
        play.model.root.stop_all()
    play.check()
    note(end)


@pytest.mark.heavy
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@settings(max_examples=min(500, max(200, settings().max_examples)))  # each is a run of a loop
@given(
    team=TREES,
    broken=st.sampled_from([None] * 9 + [*range(3)]),
    happenings=st.lists(HAPPENINGS, min_size=3, max_size=15),
)
def test_any_tree_does_in_any_history_what_otp_says(
    backend: str, team: Team, broken: int | None, happenings: list[Happening]
) -> None:
    testing.run(play, team, broken, happenings, backend=backend)
