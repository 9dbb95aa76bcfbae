"""Whatever is done to a supervisor, its children do as a naive model of OTP says."""

from __future__ import annotations

import functools
import math

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backplane import testing
from backplane.supervisor import (
    ChildRunningError,
    ChildSpec,
    Restart,
    Strategy,
    Supervisor,
)

OPERATIONS = ["crash", "crash", "return", "terminate", "restart", "delete", "start"]
Operation = tuple[str, int, Restart]


class Model:
    """What ought to happen: children in start order, and the log of their starts and ends."""

    def __init__(self, strategy: Strategy, kinds: list[Restart]) -> None:
        self.strategy = strategy
        self.kinds = {f"{n}": kind for n, kind in enumerate(kinds)}
        self.running: set[str] = set()
        self.log: list[str] = []
        for name in self.kinds:
            self.start(name)

    def start(self, name: str) -> None:
        self.running.add(name)
        self.log.append(f"+{name}")

    def stop(self, name: str) -> None:
        """Stop a child that may be running; a temporary one is forgotten."""
        if name in self.running:
            self.running.remove(name)
            self.log.append(f"-{name}")
        if self.kinds[name] is Restart.TEMPORARY:
            del self.kinds[name]

    def end(self, name: str, *, well: bool) -> None:
        """A child ends by itself."""
        kind, order = self.kinds[name], list(self.kinds)
        self.stop(name)
        if kind is Restart.TEMPORARY or (kind is Restart.TRANSIENT and well):
            return
        group = {
            Strategy.ONE_FOR_ONE: [name],
            Strategy.ONE_FOR_ALL: order,
            Strategy.REST_FOR_ONE: order[order.index(name) :],
        }[self.strategy]
        for other in reversed(group):
            self.stop(other)
        for other in group:
            if other in self.kinds:
                self.start(other)

    def end_all(self) -> None:
        for name in reversed(list(self.kinds)):
            self.stop(name)


class Stage:
    """The real children, which end when they are told."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.cues: dict[str, anyio.Event] = {}
        self.crashing = False

    async def run(self, name: str) -> None:
        self.log.append(f"+{name}")
        cue = self.cues[name] = anyio.Event()
        try:
            await cue.wait()
            if self.crashing:
                raise ValueError(name)
        finally:
            self.log.append(f"-{name}")

    def spec(self, name: str, kind: Restart) -> ChildSpec:
        return ChildSpec(name, functools.partial(self.run, name), restart=kind)


async def play(strategy: Strategy, kinds: list[Restart], operations: list[Operation]) -> None:
    model, stage = Model(strategy, kinds), Stage()
    children = [stage.spec(name, kind) for name, kind in model.kinds.items()]
    supervisor = Supervisor(
        children, strategy=strategy, max_restarts=1000, max_seconds=math.inf, subscribers=[]
    )

    async def check() -> None:
        for _ in range(12 + 4 * len(model.kinds)):
            await anyio.lowlevel.checkpoint()
        assert stage.log == model.log
        infos = supervisor.which_children()
        assert [info.id for info in reversed(infos)] == list(model.kinds)
        assert {info.id for info in infos if info.state.value == "running"} == model.running
        assert supervisor.count_children().active == len(model.running)

    async with supervisor:
        await check()
        for count, (operation, number, kind) in enumerate(operations):
            if operation == "start" or not model.kinds:
                model.kinds[f"n{count}"] = kind
                model.start(f"n{count}")
                await supervisor.start_child(stage.spec(f"n{count}", kind))
                await check()
                continue
            name = list(model.kinds)[number % len(model.kinds)]
            runs = name in model.running
            match operation:
                case "crash" | "return" if runs:
                    stage.crashing = operation == "crash"
                    stage.cues[name].set()
                    model.end(name, well=not stage.crashing)
                case "terminate":
                    model.stop(name)
                    await supervisor.terminate_child(name)
                case "restart" | "delete" if runs:
                    call = getattr(supervisor, f"{operation}_child")
                    with pytest.raises(ChildRunningError):
                        await call(name)
                case "restart":
                    model.start(name)
                    await supervisor.restart_child(name)
                case "delete":
                    del model.kinds[name]
                    await supervisor.delete_child(name)
                case _:  # what is down cannot end
                    pass
            await check()
    model.end_all()
    assert stage.log == model.log


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@settings(max_examples=min(200, settings().max_examples))  # each is a run of a loop
@given(
    strategy=st.sampled_from(Strategy),
    kinds=st.lists(st.sampled_from(Restart), max_size=5),
    operations=st.lists(
        st.tuples(st.sampled_from(OPERATIONS), st.integers(0, 9), st.sampled_from(Restart)),
        max_size=20,
    ),
)
def test_any_history_of_ends_and_calls_goes_as_in_otp(
    backend: str, strategy: Strategy, kinds: list[Restart], operations: list[Operation]
) -> None:
    testing.run(play, strategy, kinds, operations, backend=backend)
