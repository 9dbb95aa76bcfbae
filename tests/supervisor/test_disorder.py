"""Everything at once, at times that coincide: what must hold whatever the order.

Where many things happen at the same time there is no one right order, so that
no model says what follows (``test_trees`` has that). But whatever follows: no
child lives twice at once, what is shown is what runs, every life that was told
to begin is told to end, nothing hangs, and nothing is left.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import anyio
import pytest
from anyio.abc import TaskStatus
from hypothesis import given, settings
from hypothesis import strategies as st

from backplane import DeviceID, testing
from backplane.supervisor import (
    AutoShutdown,
    Backoff,
    Budget,
    ChildExited,
    ChildInfo,
    ChildSpec,
    ChildStarted,
    ChildState,
    DynamicSupervisor,
    Event,
    Exhausted,
    MaxRestartsError,
    Permanent,
    Restart,
    StartError,
    Strategy,
    Supervisor,
    SupervisorError,
)

pytestmark = pytest.mark.usefixtures("nothing_left")
NEVER = AutoShutdown.NEVER


class Disorder:
    """Children, supervisors and callers that do what chance says."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.chance = random.Random(seed)
        self.alive: Counter[str] = Counter()
        self.most_alive = 0
        self.started: Counter[DeviceID] = Counter()
        self.exited: Counter[DeviceID] = Counter()
        self.known: set[str] = set()
        """Those that have started once: their next start may fail."""
        self.cues: dict[str, anyio.Event] = {}
        self.supervisors: list[Supervisor] = []

    def tell(self, event: Event) -> None:
        if isinstance(event, ChildStarted):
            self.started[event.device] += 1
        elif isinstance(event, ChildExited):
            self.exited[event.device] += 1

    # Children.

    async def report(self, name: str, *, task_status: TaskStatus[None]) -> None:
        await self.live(name, task_status.started)

    async def live(self, name: str, started: Callable[[], None] = lambda: None) -> None:
        # Each life has its own chance: trio's order of turns must not change it.
        chance = random.Random(f"{self.seed} {name} {len(self.started)}")
        self.alive[name] += 1
        self.most_alive = max(self.most_alive, self.alive[name])
        cue = self.cues[name] = anyio.Event()
        try:
            await anyio.sleep(chance.choice([0, 0, 1]))
            if name in self.known and chance.random() < 0.2:
                raise OSError
            self.known.add(name)
            started()
            with anyio.move_on_after(chance.choice([0.5, 1, 2, 5, 1e9])):
                await cue.wait()
            error = chance.choice([None, ValueError, ValueError, ValueError, Permanent])
            if error is not None:
                raise error
        finally:
            try:
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(chance.choice([0, 0, 1, 3]))
            finally:
                self.alive[name] -= 1

    def backoff(self) -> Backoff | None:
        steady = Backoff(initial=1, factor=1, maximum=1, jitter=0)
        return self.chance.choice([None, None, steady, Backoff(initial=0.5)])

    def spec(self, name: str, depth: int = 0, policy: AutoShutdown = NEVER) -> ChildSpec:
        pick = self.chance.choice
        restart = pick(list(Restart))
        run: Callable[..., Awaitable[object]]
        inner = depth > 0 and self.chance.random() < 0.45
        if inner:
            run = self.supervisor(name, depth - 1).run
        else:
            run = partial(self.report if pick([True, False]) else self.live, name)
        return ChildSpec(
            name,
            run,
            restart=restart,
            significant=policy is not NEVER and restart is not Restart.PERMANENT,
            shutdown=math.inf,  # a zombie would live beside its successor
            start_timeout=pick([math.inf, math.inf, math.inf, 8]),
            budget=pick([None, None, Budget(2, 3)]),
            backoff=self.backoff(),
            exhausted=pick([None, None, *Exhausted]),
            is_supervisor=inner,
        )

    def settings(self) -> dict[str, Any]:
        pick = self.chance.choice
        return {
            "max_restarts": pick([0, 3, 10, 1000]),
            "max_seconds": pick([1, 5]),
            "backoff": self.backoff(),
            "exhausted": pick([Exhausted.ESCALATE, *Exhausted]),
            "subscribers": [self.tell],
        }

    def supervisor(self, name: str, depth: int) -> Supervisor:
        policy = self.chance.choice([NEVER, *AutoShutdown])
        children = range(self.chance.randint(1, 4))
        supervisor = Supervisor(
            [self.spec(f"{name}.{n}", depth, policy) for n in children],
            strategy=self.chance.choice(list(Strategy)),
            auto_shutdown=policy,
            name=name,
            **self.settings(),
        )
        self.supervisors.append(supervisor)
        return supervisor

    # Callers.

    async def call(self, number: int, act: Callable[[random.Random], Awaitable[object]]) -> None:
        """Do something a dozen times; some of it is cancelled, and some refused."""
        chance = random.Random(f"{self.seed} caller {number}")
        for _ in range(12):
            await anyio.sleep(chance.choice([0, 0.5, 1, 1.5]))
            try:
                with anyio.move_on_after(chance.choice([1e9, 1e9, 0, 1])):
                    await act(chance)
            except SupervisorError:
                pass

    async def disturb(self, chance: random.Random) -> None:
        supervisor = chance.choice(self.supervisors)
        ids = [info.id for info in supervisor.which_children()]
        target = chance.choice(ids or ["nobody"])
        match chance.randrange(12):
            case 0 | 1:
                await supervisor.terminate_child(target)
            case 2 | 3:
                await supervisor.restart_child(target)
            case 4:
                await supervisor.delete_child(target)
            case 5 | 6:
                await supervisor.start_child(self.spec(f"{supervisor.name}+{chance.randrange(3)}"))
            case 7 if chance.random() < 0.3:
                await supervisor.stop()
            case _:
                self.give_cue(target)

    def give_cue(self, name: str) -> None:
        if name in self.cues:
            self.cues[name].set()

    async def callers(self, act: Callable[[random.Random], Awaitable[object]]) -> None:
        """Some callers at once, for a while; they may be cancelled in the midst of it."""
        async with anyio.create_task_group() as group:
            for number in range(4):
                group.start_soon(self.call, number, act)
            await anyio.sleep(self.chance.choice([3, 20]))
            if self.chance.random() < 0.3:
                group.cancel_scope.cancel()

    def check_nothing_left(self) -> None:
        assert self.most_alive <= 1
        assert not +self.alive
        assert not self.started - self.exited
        assert set(self.exited.values()) <= {1}


async def play_static(seed: int) -> None:
    disorder = Disorder(seed)
    with anyio.fail_after(1e6):
        try:
            async with disorder.supervisor("top", depth=2):
                await disorder.callers(disorder.disturb)
        except (StartError, MaxRestartsError):
            pass
    disorder.check_nothing_left()


async def play_dynamic(seed: int) -> None:
    disorder, infos = Disorder(seed), list[ChildInfo]()
    supervisor = DynamicSupervisor(
        max_children=disorder.chance.choice([None, None, 3]), **disorder.settings()
    )

    async def disturb(chance: random.Random) -> None:
        info = chance.choice(infos) if infos else None
        match chance.randrange(8):
            case 0 if info is not None:
                await supervisor.terminate_child(info)
                assert not disorder.alive[info.id]
            case 1 if info is not None and info.line is not None:
                await supervisor.terminate_child(info.line)
            case 2 if info is not None:
                await supervisor.restart_child(info)
            case 3 | 4 if info is not None:
                disorder.give_cue(info.id)
            case _:
                infos.append(await supervisor.start_child(disorder.spec(f"{chance.random()}")))

    with anyio.fail_after(1e6):
        try:
            async with supervisor:
                await disorder.callers(disturb)
                await anyio.sleep(0.25)
                if supervisor.tree().phase == "running":
                    down = (ChildState.WAITING, ChildState.PARKED)
                    children = supervisor.which_children()
                    shown = {info.id for info in children if info.state not in down}
                    assert shown == set(+disorder.alive)
        except MaxRestartsError:
            pass
    disorder.check_nothing_left()


@pytest.mark.heavy
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("play", [play_static, play_dynamic], ids=["static", "dynamic"])
@settings(max_examples=min(300, max(100, settings().max_examples)))
@given(seed=st.integers(0, 2**32))
def test_whatever_happens_in_whatever_order_each_child_lives_once_and_ends(
    backend: str, play: Callable[[int], Awaitable[None]], seed: int
) -> None:
    testing.run(play, seed, backend=backend)
