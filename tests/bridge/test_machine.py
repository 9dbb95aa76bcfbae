"""The lives of `sim.py` once more, as Hypothesis draws them: a failing one is made short."""

from __future__ import annotations

import gc
import os
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from backplane.bridge._mirror import Mirror

if TYPE_CHECKING:
    import sim
    from sim_world import BugError
else:
    from . import sim
    from .sim_world import BugError

FULL = os.environ.get("CI") and os.environ.get("HYPOTHESIS_PROFILE") != "dev"
HIGH = 8
# What is to be met often stands there more than once.
ACTS = [
    "pump", "flush", "open", "link", "link", "link", "unlink", "end", "drop", "drop_line", "make",
    "move", "move", "tell", "ask", "answer", "open_ended", "hand_over", "find", "time", "open_lost",
    "cut", "notice", "dial", "close", "restart",
]  # fmt: skip


class Drawn(random.Random):
    """What is left to chance follows from a few small numbers, which Hypothesis draws."""

    def __init__(self, numbers: Sequence[int] = (), rest: int = 0) -> None:
        super().__init__(0)
        self.numbers = list(numbers)
        self.rest = rest

    def __reduce__(self) -> Any:
        return Drawn, (self.numbers, self.rest)

    def draw(self) -> int:
        return self.numbers.pop(0) if self.numbers else self.rest

    def random(self) -> float:
        return self.draw() / HIGH

    def choice(self, seq: Any) -> Any:
        return seq[self.draw() % len(seq)]

    def randrange(self, start: int, stop: int | None = None, step: int = 1) -> int:
        low, high = (0, start) if stop is None else (start, stop)
        return low + self.draw() % (high - low)

    def sample(self, population: Any, k: int, *, counts: Any = None) -> list[Any]:
        first = self.draw() % len(population)
        return [population[(first + n) % len(population)] for n in range(k)]


class Step(NamedTuple):
    """What happens, at which node, and what is left to chance."""

    act: str
    whose: int
    numbers: tuple[int, ...]


def step(code: int) -> Step:
    """What a number stands for: one draw a step, so that Hypothesis can leave steps out."""
    code, act = divmod(code, len(ACTS))
    code, whose = divmod(code, 2)
    return Step(ACTS[act], whose, tuple(code // HIGH**n % HIGH for n in range(4)))


STEPS = st.integers(0, len(ACTS) * 2 * HIGH**4 - 1).map(step)


class Lives(RuleBasedStateMachine):
    """One life of two nodes whose connection breaks."""

    def __init__(self) -> None:
        super().__init__()
        gc.disable()  # as there
        self.sim = sim.Sim(Drawn(rest=HIGH // 2))

    @rule(step=STEPS)
    def act(self, step: Step) -> None:
        world = self.sim.world
        world.rng.__init__(step.numbers)  # type: ignore[misc]
        self.sim.step(step.act, world.nodes[step.whose])

    def teardown(self) -> None:
        try:
            self.sim.world.rng.__init__()  # type: ignore[misc]
            self.sim.rest()
            self.sim.part()
        finally:
            gc.enable()


def run(examples: int, **options: Any) -> None:
    run_state_machine_as_test(
        Lives,
        settings=settings(max_examples=examples, stateful_step_count=40, **options),
    )


def test_nothing_goes_wrong_whatever_is_drawn() -> None:
    run(1000 if FULL else 50)


@pytest.mark.heavy
def test_a_planted_fault_is_found_and_made_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Mirror, "on_fire", lambda self, frame: None)

    with pytest.raises(BugError) as raised:
        run(1000, database=None, print_blob=False, report_multiple_bugs=False)

    story = "\n".join(raised.value.__notes__)
    assert 0 < story.count("state.act(") < 10
