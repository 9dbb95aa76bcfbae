"""Whoever holds or calls a supervisor is cancelled at every moment at which it can be.

Each scenario takes some seconds of virtual time, in which the clock jumps from
one instant at which something happens to the next. It is run again and again:
cancelled at each of these instants, after 0, 1, 2 ... turns of the loop, until
so many turns go by that all that was to happen at that instant has happened.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from contextlib import nullcontext
from typing import Any, Protocol

import anyio
import anyio.lowlevel
import pytest
import sniffio
import trio
from anyio.abc import TaskStatus

from backplane.supervisor import (
    AutoShutdown,
    Backoff,
    ChildSpec,
    ChildState,
    DynamicSupervisor,
    MaxRestartsError,
    Restart,
    Strategy,
    Supervisor,
)

STEADY = Backoff(initial=1, factor=1, maximum=1, jitter=0)
TURNS = 25
"""More than anything takes that happens at one instant."""


class Calling(Protocol):
    """What `Call` in the conftest of all tests is."""

    @property
    def cancelled(self) -> bool: ...

    def __call__(self) -> Coroutine[Any, Any, None]: ...
    def cancel(self) -> None: ...


Caller = Callable[[Callable[[], Awaitable[object]]], Calling]


def tasks() -> int:
    """How many tasks there are."""
    if sniffio.current_async_library() == "trio":
        return trio.lowlevel.current_statistics().tasks_living
    return len(asyncio.all_tasks())


@pytest.fixture
async def no_task_left() -> AsyncIterator[None]:
    before = tasks()
    yield
    assert tasks() == before


pytestmark = [
    pytest.mark.anyio,
    pytest.mark.usefixtures("nothing_left", "no_task_left"),
    pytest.mark.parametrize("anyio_backend", ["virtual asyncio", "virtual trio"], indirect=True),
    pytest.mark.parametrize("way", ["once", "twice", "scope"]),
]


class Stage:
    """Children that log when their code begins (``+a``) and is over (``-a``)."""

    def __init__(self) -> None:
        self.log: list[str] = []

    def child(self, name: str, ends: float = 1e9, cleanup: float = 0, **fields: Any) -> ChildSpec:
        """A child that crashes once, after so many seconds, and cleans up for some."""

        async def run() -> None:
            with self.life(name):
                try:
                    await anyio.sleep(ends if self.log.count(f"+{name}") == 1 else 1e9)
                    raise ValueError(name)
                finally:
                    with anyio.CancelScope(shield=True):
                        await anyio.sleep(cleanup)

        return ChildSpec(name, run, **fields)

    def starter(self, name: str, takes: float, **fields: Any) -> ChildSpec:
        """A child that takes some seconds to start."""

        async def run(*, task_status: TaskStatus[None]) -> None:
            with self.life(name):
                await anyio.sleep(takes)
                task_status.started()
                await anyio.sleep_forever()

        return ChildSpec(name, run, **fields)

    def life(self, name: str) -> Life:
        return Life(self.log, name)

    def check_all_ended(self) -> None:
        counts = Counter(self.log)
        assert counts
        for entry in counts:
            assert counts[f"+{entry[1:]}"] == counts[f"-{entry[1:]}"], self.log


class Life:
    """Logs the begin and the end of a child's code."""

    def __init__(self, log: list[str], name: str) -> None:
        self.log = log
        self.name = name

    def __enter__(self) -> None:
        self.log.append(f"+{self.name}")

    def __exit__(self, *exc_info: object) -> None:
        self.log.append(f"-{self.name}")


async def turns(count: int) -> None:
    for _ in range(count):
        await anyio.lowlevel.checkpoint()


class Cancelling:
    """Runs something in a task of its own, and cancels that at a moment, in one of some ways.

    ``once`` and ``twice`` are how the loop's own library cancels (asyncio: a
    request to the task, which must stay balanced), ``scope`` is a scope of anyio's.
    """

    def __init__(self, call: Caller, way: str) -> None:
        self._call = call
        self._way = way
        self.begun = False
        self.came_late = False
        """Whether it was over before the moment."""

    async def run(self, fn: Callable[[], Awaitable[object]], instant: float, turn: int) -> None:
        scope = anyio.CancelScope() if self._way == "scope" else nullcontext()
        over = caught = False

        async def body() -> None:
            nonlocal over, caught
            with scope:
                try:
                    self.begun = True
                    await fn()
                    # Where nothing waits any more, trio's cancellation comes out of the next wait.
                    await anyio.lowlevel.checkpoint()
                except anyio.get_cancelled_exc_class():
                    caught = True
                    raise
                finally:
                    over = True

        calling = self._call(body)
        async with anyio.create_task_group() as group:
            group.start_soon(calling)
            if instant > 0:
                await anyio.sleep(instant)
            await turns(turn)
            self.came_late = over
            if not over and isinstance(scope, anyio.CancelScope):
                scope.cancel()
            elif not over:
                calling.cancel()
                await anyio.lowlevel.checkpoint()
                if self._way == "twice" and not over:
                    calling.cancel()
        if not self.came_late:
            assert caught
            assert calling.cancelled or isinstance(scope, anyio.CancelScope)


async def sweep(
    call: Caller,
    way: str,
    instants: Iterable[float],
    scenario: Callable[[Stage], Callable[[], Awaitable[object]]],
) -> None:
    """Cancel a scenario at all moments. It is over after the last of the instants."""
    before = tasks()
    late = False
    for instant in instants:
        for turn in range(TURNS):
            stage, cancelling = Stage(), Cancelling(call, way)
            await cancelling.run(scenario(stage), instant, turn)
            assert tasks() == before
            if stage.log or turn > 3:
                stage.check_all_ended()
            late = cancelling.came_late
            if late:
                break
    assert late


def tree(stage: Stage, **settings: Any) -> Supervisor:
    """A supervisor below a supervisor, of children that take their time."""
    inner = Supervisor(
        [stage.starter("x", 1), stage.child("y", cleanup=1), stage.starter("z", 1)],
        name="inner",
        subscribers=[],
    )
    children: list[Any] = [stage.child("a"), inner, stage.starter("b", 1), stage.child("c")]
    return Supervisor(children, subscribers=[], **settings)


async def test_the_holder_is_cancelled_in_start_in_its_block_and_on_leaving(
    call: Caller, way: str
) -> None:
    def scenario(stage: Stage) -> Callable[[], Awaitable[object]]:
        async def hold() -> None:
            async with tree(stage):
                await anyio.sleep(1)

        return hold

    await sweep(call, way, [0, 1, 2, 3, 4, 5], scenario)


async def test_the_holder_is_cancelled_while_it_waits_in_run(call: Caller, way: str) -> None:
    def scenario(stage: Stage) -> Callable[[], Awaitable[object]]:
        last = stage.child("last", 1, restart=Restart.TEMPORARY, significant=True)

        async def hold() -> None:
            await Supervisor(
                [stage.child("a", cleanup=1), last],
                auto_shutdown=AutoShutdown.ANY_SIGNIFICANT,
                subscribers=[],
            ).run()

        return hold

    await sweep(call, way, [0, 1, 2], scenario)


@pytest.mark.parametrize("strategy", Strategy)
@pytest.mark.parametrize("backoff", [None, STEADY], ids=["at once", "after a wait"])
async def test_the_holder_is_cancelled_during_a_restart(
    call: Caller, way: str, strategy: Strategy, backoff: Backoff | None
) -> None:
    def scenario(stage: Stage) -> Callable[[], Awaitable[object]]:
        children = [stage.starter("a", 0.5), stage.child("b", 1), stage.child("c", cleanup=0.5)]

        async def hold() -> None:
            async with Supervisor(children, strategy=strategy, backoff=backoff, subscribers=[]):
                await anyio.sleep(3)

        return hold

    await sweep(call, way, [0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4], scenario)


async def test_the_holder_is_cancelled_while_an_exception_leaves_the_block(
    call: Caller, way: str
) -> None:
    errors: list[BaseException] = []

    def scenario(stage: Stage) -> Callable[[], Awaitable[object]]:
        async def hold() -> None:
            try:
                async with tree(stage):
                    raise OSError
            except OSError as error:
                errors.append(error)
            except BaseException as error:
                if stage.log.count("+c") and isinstance(error.__context__, OSError):
                    errors.append(error)
                raise

        return hold

    await sweep(call, way, [0, 1, 2, 3, 4], scenario)
    assert errors


async def test_the_holder_is_cancelled_while_its_supervisor_gives_up(
    call: Caller, way: str
) -> None:
    def scenario(stage: Stage) -> Callable[[], Awaitable[object]]:
        async def hold() -> None:
            try:
                async with Supervisor(
                    [stage.child("a", cleanup=1), stage.child("b", 1)],
                    max_restarts=0,
                    subscribers=[],
                ):
                    await anyio.sleep_forever()
            except MaxRestartsError:
                pass

        return hold

    await sweep(call, way, [0, 1, 2], scenario)


async def test_the_holder_is_cancelled_while_others_stop_its_supervisor(
    call: Caller, way: str
) -> None:
    def scenario(stage: Stage) -> Callable[[], Awaitable[object]]:
        async def hold() -> None:
            async with tree(stage) as supervisor, anyio.create_task_group() as group:
                group.start_soon(supervisor.stop)
                await supervisor.wait()

        return hold

    await sweep(call, way, [3, 4, 5], scenario)


# -- callers -----------------------------------------------------------------------

Check = Callable[[Supervisor, Stage], None]


async def sweep_calls(
    call: Caller,
    way: str,
    instants: Iterable[float],
    make: Callable[[Stage, Supervisor], Callable[[], Awaitable[object]]],
    check: Check,
) -> None:
    """Cancel the caller of a supervisor at all moments; then look at what it has done.

    For the first second the supervisor has something else to do.
    """
    late = False
    for instant in instants:
        for turn in range(TURNS):
            stage, cancelling = Stage(), Cancelling(call, way)
            children = [stage.child("a"), stage.starter("b", 1), stage.child("c", cleanup=1)]
            slow = stage.child("slow", cleanup=1, restart=Restart.TEMPORARY)
            async with Supervisor([*children, slow], subscribers=[]) as supervisor:
                before = tasks()
                running = supervisor.count_children().active
                await turns(3)
                async with anyio.create_task_group() as group:
                    group.start_soon(supervisor.terminate_child, "slow")
                    await turns(3)
                    await cancelling.run(make(stage, supervisor), instant, turn)
                await anyio.sleep(5)  # what was begun is gone through with
                assert tasks() - before == supervisor.count_children().active - running
                check(supervisor, stage)
                for info in supervisor.which_children():
                    alive = stage.log.count(f"+{info.id}") - stage.log.count(f"-{info.id}")
                    assert alive == (info.state is ChildState.RUNNING)
            stage.check_all_ended()
            late = cancelling.came_late
            if late:
                break
    assert late


def ids(supervisor: Supervisor) -> list[str]:
    return [info.id for info in reversed(supervisor.which_children())]


async def test_the_caller_of_start_child_is_cancelled(call: Caller, way: str) -> None:
    known: set[tuple[str, ...]] = set()

    def make(stage: Stage, supervisor: Supervisor) -> Callable[[], Awaitable[object]]:
        return lambda: supervisor.start_child(stage.starter("d", 1))

    def check(supervisor: Supervisor, stage: Stage) -> None:
        known.add(tuple(ids(supervisor)))
        assert ("d" in ids(supervisor)) == ("+d" in stage.log)

    await sweep_calls(call, way, [0, 1, 2, 3], make, check)
    assert known == {("a", "b", "c"), ("a", "b", "c", "d")}


async def test_the_caller_of_terminate_child_is_cancelled(call: Caller, way: str) -> None:
    seen: set[ChildState] = set()

    def make(stage: Stage, supervisor: Supervisor) -> Callable[[], Awaitable[object]]:
        return lambda: supervisor.terminate_child("c")

    def check(supervisor: Supervisor, stage: Stage) -> None:
        assert ids(supervisor) == ["a", "b", "c"]
        seen.add(supervisor.which_child("c").state)

    await sweep_calls(call, way, [0, 1, 2, 3], make, check)
    assert seen == {ChildState.RUNNING, ChildState.STOPPED}


async def test_the_caller_of_restart_child_is_cancelled(call: Caller, way: str) -> None:
    seen: set[ChildState] = set()

    def make(stage: Stage, supervisor: Supervisor) -> Callable[[], Awaitable[object]]:
        async def restart() -> None:
            await supervisor.terminate_child("b")
            await supervisor.restart_child("b")

        return restart

    def check(supervisor: Supervisor, stage: Stage) -> None:
        assert ids(supervisor) == ["a", "b", "c"]
        seen.add(supervisor.which_child("b").state)

    await sweep_calls(call, way, [0, 1, 2, 3], make, check)
    assert seen == {ChildState.RUNNING, ChildState.STOPPED}


async def test_the_caller_of_stop_is_cancelled_and_it_is_stopped_all_the_same(
    call: Caller, way: str
) -> None:
    async def stop_at(instant: float, turn: int) -> bool:
        stage, cancelling = Stage(), Cancelling(call, way)
        children = [stage.child("a"), stage.child("b", cleanup=1)]
        async with Supervisor(children, subscribers=[]) as supervisor:
            await turns(3)
            await cancelling.run(supervisor.stop, instant, turn)
            if cancelling.begun:
                await supervisor.wait()
                await anyio.sleep(2)
                assert supervisor.tree().phase == "ended"
        stage.check_all_ended()
        return cancelling.came_late

    assert not any([await stop_at(0, turn) for turn in range(TURNS)])
    assert await stop_at(1, TURNS)
    for turn in range(TURNS):
        await stop_at(1, turn)


# -- dynamic supervisors -----------------------------------------------------------


async def dynamic_family(stage: Stage, supervisor: DynamicSupervisor) -> None:
    await supervisor.start_child(stage.child("a", 2, cleanup=1))
    await supervisor.start_child(stage.starter("b", 1))
    await supervisor.start_child(stage.child("c", cleanup=1))


async def test_the_holder_of_a_dynamic_supervisor_is_cancelled(call: Caller, way: str) -> None:
    def scenario(stage: Stage) -> Callable[[], Awaitable[object]]:
        async def hold() -> None:
            async with DynamicSupervisor(subscribers=[], backoff=STEADY) as supervisor:
                await dynamic_family(stage, supervisor)
                await anyio.sleep(3)

        return hold

    await sweep(call, way, [0, 1, 2, 3, 4, 5], scenario)


async def test_a_dynamic_child_whose_starter_is_cancelled_is_stopped_again(
    call: Caller, way: str
) -> None:
    async def start_at(instant: float, turn: int) -> bool:
        stage, cancelling = Stage(), Cancelling(call, way)
        async with DynamicSupervisor(subscribers=[]) as supervisor:
            await dynamic_family(stage, supervisor)
            started = False

            async def start() -> None:
                nonlocal started
                await supervisor.start_child(stage.starter("d", 1))
                started = True

            await cancelling.run(start, instant, turn)
            await anyio.sleep(0.5)
            names = [info.id for info in supervisor.which_children()]
            assert ("d" in names) == started
            assert stage.log.count("+d") - stage.log.count("-d") == started
        stage.check_all_ended()
        return cancelling.came_late

    for instant in (0, 1):
        for turn in range(TURNS):
            late = await start_at(instant, turn)
            assert not late or instant == 1
    assert await start_at(1, TURNS)


async def test_a_dynamic_child_is_stopped_even_if_who_asked_for_it_is_cancelled(
    call: Caller, way: str
) -> None:
    async def terminate_at(instant: float, turn: int) -> bool:
        stage, cancelling = Stage(), Cancelling(call, way)
        async with DynamicSupervisor(subscribers=[]) as supervisor:
            await dynamic_family(stage, supervisor)
            info = supervisor.which_children()[0]
            await turns(3)
            await cancelling.run(lambda: supervisor.terminate_child(info), instant, turn)
            await anyio.sleep(1.5)
            names = [info.id for info in supervisor.which_children()]
            if turn > 1 or instant == 1:
                assert names == ["b", "a"]
            assert stage.log.count("+c") - stage.log.count("-c") == ("c" in names)
        stage.check_all_ended()
        return cancelling.came_late

    for instant in (0, 1):
        for turn in range(TURNS):
            await terminate_at(instant, turn)
    assert await terminate_at(1, TURNS)
