"""A dynamic supervisor on the real clock: calls from other threads, and what is left."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from anyio.abc import TaskStatus

from backplane.supervisor import (
    ChildNotFoundError,
    ChildSpec,
    DynamicSupervisor,
    Exhausted,
    NotRunningError,
)

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"], indirect=True),
]


async def settle() -> None:
    """Let everything happen that needs no time."""
    for _ in range(60):
        await anyio.lowlevel.checkpoint()


async def forever() -> None:
    await anyio.sleep_forever()


async def starts_never(*, task_status: TaskStatus[None]) -> None:
    await anyio.sleep_forever()


@pytest.mark.usefixtures("nothing_left")
async def test_nothing_outlives_the_block() -> None:
    async def crashes(*, task_status: TaskStatus[None]) -> None:
        task_status.started()
        await anyio.lowlevel.checkpoint()
        raise ValueError

    async with DynamicSupervisor(
        max_restarts=10, exhausted=Exhausted.PARK, subscribers=[]
    ) as supervisor:
        for _ in range(20):
            await supervisor.start_child(crashes)
            await supervisor.start_child(ChildSpec("slow", forever, start_timeout=100))
        await settle()
        for info in supervisor.which_children()[:20]:
            await supervisor.terminate_child(info)


async def _in_a_thread(fn: Callable[[], Awaitable[None]], backend: str) -> None:
    """Run an async function in a thread with its own loop."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            anyio.run(fn, backend=backend)
        except BaseException as error:
            errors.append(error)

    await anyio.to_thread.run_sync(run)
    if errors:
        raise errors[0]


@pytest.mark.parametrize("theirs", ["asyncio", "trio"])
async def test_another_thread_starts_and_terminates_children(theirs: str) -> None:
    threads: set[int] = set()

    async def run(*, task_status: TaskStatus[int]) -> None:
        threads.add(threading.get_ident())
        task_status.started(42)
        await anyio.sleep_forever()

    async with DynamicSupervisor(max_children=10) as supervisor:

        async def elsewhere() -> None:
            for _ in range(20):
                info = await supervisor.start_child(run)
                assert info.value == 42
                assert supervisor.count_children().active == 1
                await supervisor.terminate_child(info)
                with pytest.raises(ChildNotFoundError):
                    await supervisor.terminate_child(info)
            with anyio.move_on_after(0.01) as scope:
                await supervisor.start_child(starts_never)
            assert scope.cancelled_caught

        await _in_a_thread(elsewhere, theirs)
        await settle()
        assert supervisor.which_children() == []
    assert threads == {threading.get_ident()}


@pytest.mark.heavy
@pytest.mark.parametrize("theirs", ["asyncio", "trio"])
async def test_the_time_that_another_thread_gives_a_stop_is_that_of_the_supervisor(
    theirs: str,
) -> None:
    log: list[str] = []
    freed = anyio.Event()

    async def slow(cleanup: Callable[[], Awaitable[object]]) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await cleanup()
            log.append("done")

    supervisor = DynamicSupervisor()
    async with anyio.create_task_group() as tg:
        await tg.start(supervisor.run)
        for cleanup in (settle, freed.wait):  # one that needs no time, and one that takes for ever
            await supervisor.start_child(ChildSpec("a", slow, (cleanup,), shutdown=30))
        await settle()
        before = anyio.current_time()
        await _in_a_thread(lambda: supervisor.stop(1), theirs)
        assert log == ["done"]
        assert anyio.current_time() - before < 20
        freed.set()  # trio's zombie


async def test_another_thread_that_asks_as_the_supervisor_ends_is_told_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asking, ended = threading.Event(), threading.Event()
    outcome: list[BaseException] = []
    supervisor = DynamicSupervisor()
    async with anyio.create_task_group() as tg:
        await tg.start(supervisor.run)
        engine = supervisor._running("test")
        put = engine.put

        def put_late(request: Any) -> None:
            if request.parking is not None:
                asking.set()
                ended.wait(20)
            put(request)

        async def elsewhere() -> None:
            with anyio.fail_after(20):
                try:
                    await supervisor.start_child(forever)
                except NotRunningError as error:
                    outcome.append(error)

        monkeypatch.setattr(engine, "put", put_late)
        tg.start_soon(_in_a_thread, elsewhere, "asyncio")
        await anyio.to_thread.run_sync(asking.wait, 20)
        await supervisor.stop()
        ended.set()
    assert len(outcome) == 1


async def test_another_thread_may_look_while_children_come_and_go() -> None:
    async with DynamicSupervisor(subscribers=[]) as supervisor:
        over = threading.Event()
        looks: list[int] = []

        def look() -> None:
            while not over.is_set():
                supervisor.which_children()
                supervisor.tree()
                looks.append(supervisor.count_children().specs)

        async with anyio.create_task_group() as tg:
            tg.start_soon(anyio.to_thread.run_sync, look)
            try:
                while len(looks) < 100:
                    infos = [await supervisor.start_child(forever) for _ in range(20)]
                    for info in infos:
                        await supervisor.terminate_child(info)
            finally:
                over.set()
        assert set(looks) <= set(range(21))
