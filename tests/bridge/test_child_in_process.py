"""Children of supervisors that live in a process of their own."""

from __future__ import annotations

import inspect
import math
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from backplane import Failed, Killed
from backplane.bridge import _child_keeper
from backplane.bridge._child_exit import NotSendableError, ProcessExitedError, ProcessKilledError
from backplane.bridge._in_process import in_process
from backplane.supervisor import (
    BRUTAL_KILL,
    ChildExited,
    ChildKilled,
    ChildSpec,
    ChildState,
    DynamicSupervisor,
    Event,
    Restart,
    StartError,
    Supervisor,
    in_thread,
)

if TYPE_CHECKING:  # mypy knows the tests as single files, pytest as parts of packages
    import child_functions as fns
    from child_world import Until, World, keepers, lives, words
    from test_child_stop import cancelled_at
else:
    from . import child_functions as fns
    from .child_world import Until, World, keepers, lives, words
    from .test_child_stop import cancelled_at

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("world")]
one_loop = pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
three_loops = pytest.mark.parametrize("anyio_backend", ["asyncio", "uvloop", "trio"], indirect=True)
two_loops = pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"], indirect=True)


@three_loops
async def test_it_is_called_as_the_function_is() -> None:
    assert await in_process(fns.add)(1, b=2) == 3
    assert await in_process(fns.add_later, 1)(2) == 3


@two_loops
@pytest.mark.parametrize(
    ("then", "error"),
    [
        ("crash", ProcessKilledError(signal.SIGSEGV, "double")),
        ("kill", ProcessKilledError(signal.SIGKILL, "double")),
        ("exit", ProcessExitedError(7, "double")),
        ("raise", fns.CustomError("it", 3)),
    ],
)
async def test_each_end_is_that_of_a_call(then: str, error: Exception) -> None:
    with pytest.raises(type(error)) as caught:
        await in_process(fns.double)(1, then)
    given = caught.value
    if isinstance(given, ProcessExitedError | ProcessKilledError):
        assert f"process 'double' (pid {given.pid}) " in str(given)
        assert given.pid is not None
        assert not lives(given.pid)
        error = type(error)(*error.args[:-1], given.pid)
    assert given.args == error.args


@one_loop
async def test_a_function_that_cannot_be_found_is_refused_before_it_is_called() -> None:
    with pytest.raises(NotSendableError, match="it is a lambda"):
        in_process(lambda: None)
    with pytest.raises(ValueError, match="backend"):
        in_process(fns.add, backend="curio")  # type: ignore[call-overload]


@one_loop
async def test_it_looks_like_the_function() -> None:
    run = in_process(fns.stay_and_start)

    assert inspect.iscoroutinefunction(run)
    assert run.__name__ == "stay_and_start"
    assert ChildSpec("a", run, ("path",)).reports_start


@three_loops
async def test_a_supervisor_restarts_one_that_crashes(path: str) -> None:
    events: list[Event] = []
    spec = ChildSpec("worker", in_process(fns.crash_once, grace=20), (path,))
    async with Supervisor([spec], name="top", subscribers=[events.append]):
        await Until(lambda: len(words(path)) == 2)

    first = next(event for event in events if isinstance(event, ChildExited))
    assert isinstance(first.fault, Failed)
    assert isinstance(first.fault.exception, ProcessKilledError)
    pid = words(path)[0]
    assert str(first.fault.exception) == f"process 'top/worker' (pid {pid}) was killed by SIGSEGV"
    assert not any(lives(int(word)) for word in words(path))


@two_loops
@pytest.mark.parametrize("fn", [fns.sleep_async, fns.sleep_plainly])
async def test_a_supervisor_stops_it_and_waits_for_its_cleanup(fn: Any, path: str) -> None:
    async with Supervisor([ChildSpec("worker", in_process(fn, grace=20), (path,), shutdown=20)]):
        await Until(lambda: words(path))

    assert words(path)[1] == "end"


@two_loops
async def test_what_its_cleanup_raises_is_its_fault(path: str) -> None:
    events: list[Event] = []
    spec = ChildSpec("worker", in_process(fns.fail_in_cleanup, grace=20), (path,), shutdown=20)
    async with Supervisor([spec], subscribers=[events.append]):
        await Until(lambda: words(path))

    (exited,) = (event for event in events if isinstance(event, ChildExited))
    assert isinstance(exited.fault, Failed)
    assert isinstance(exited.fault.exception, fns.CustomError)


hangs = in_process(fns.fail_to_stop, grace=1000)
has_a_child = in_process(fns.with_a_grandchild, grace=1000)


async def beside_others(path: str) -> None:
    async with anyio.create_task_group() as tg:
        tg.start_soon(hangs, path)
        tg.start_soon(anyio.sleep_forever)


async def under_another(path: str) -> None:
    async with Supervisor([ChildSpec("inner", hangs, (path,), shutdown=math.inf)]):
        await anyio.sleep_forever()


@two_loops
@pytest.mark.parametrize(
    ("fn", "args", "shutdown"),
    [
        (hangs, (), 0.1),
        (hangs, (), BRUTAL_KILL),
        (has_a_child, ("holding the lock",), 0.1),
        (beside_others, (), 0.1),
        (under_another, (), 0.1),
    ],
    ids=["alone", "unasked", "with a child", "in a task group", "in a tree"],
)
async def test_a_supervisor_that_loses_patience_really_kills_it(
    fn: Any, args: tuple[str, ...], shutdown: Any, path: str
) -> None:
    """With a process, unlike a thread, or trio, nothing is left of it."""
    spec = ChildSpec("worker", fn, (path, *args), shutdown=shutdown)
    events: list[Event] = []
    async with Supervisor([spec], subscribers=[events.append]) as supervisor:
        await Until(lambda: words(path))
        pids = [int(word) for word in words(path)]
        assert all(map(lives, pids))
        await supervisor.terminate_child("worker")
        assert not is_there(pids[0])
        assert not any(map(lives, pids))
    exits = [event for event in events if isinstance(event, ChildExited)]
    assert [event.fault for event in exits] == [Killed()]
    assert [event.zombie for event in events if isinstance(event, ChildKilled)] == [False]


@two_loops
async def test_its_process_is_really_killed_with_a_child_in_a_thread(path: str) -> None:
    spec = ChildSpec("worker", in_thread(hangs), (path,), shutdown=0.1)
    async with Supervisor([spec], subscribers=()) as supervisor:
        await Until(lambda: words(path))
        await supervisor.terminate_child("worker")
        assert not is_there(int(words(path)[0]))
        await Until(lambda: not supervisor.tree().zombies)


@pytest.mark.heavy
@two_loops
async def test_nothing_is_left_of_many_when_the_block_ends_that_has_lost_patience(
    tmp_path: Path,
) -> None:
    events: list[Event] = []
    paths = [str(tmp_path / f"{number}") for number in range(8)]
    async with DynamicSupervisor(subscribers=[events.append]) as pool:
        for path in paths:
            await pool.start_child(
                ChildSpec("worker", has_a_child, (path, "holding the lock"), shutdown=0.1)
            )
        await Until(lambda: all(map(words, paths)))
    pids = [list(map(int, words(path))) for path in paths]
    assert not any(is_there(pid) for pid, _ in pids)
    assert not any(lives(pid) for _, pid in pids)
    assert {event.zombie for event in events if isinstance(event, ChildKilled)} == {False}


@two_loops
async def test_one_that_even_the_kernel_does_not_end_is_a_zombie(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a process that waits for a disk which does not answer."""
    monkeypatch.setattr(_child_keeper, "_LAST_WAIT", 0.05)
    monkeypatch.setattr(_child_keeper.Keeper, "_kill_group", lambda _: None)
    events: list[Event] = []
    spec = ChildSpec("worker", hangs, (path,), shutdown=0.1)
    async with Supervisor([spec], subscribers=[events.append]) as supervisor:
        await Until(lambda: words(path))
        await supervisor.terminate_child("worker")
        assert [event.zombie for event in events if isinstance(event, ChildKilled)] == [True]
        pid = int(words(path)[0])
        assert lives(pid)
        os.kill(pid, signal.SIGKILL)
        await Until(lambda: not is_there(pid) and not supervisor.tree().zombies and not keepers())


def is_there(pid: int) -> bool:
    """Whether the kernel knows a process, even one that only waits to be reaped."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@two_loops
async def test_it_says_itself_when_it_has_started(path: str) -> None:
    spec = ChildSpec("worker", in_process(fns.stay_and_start, grace=20), (path,), shutdown=20)
    async with Supervisor([spec]) as supervisor:
        child = supervisor.which_child("worker")
        assert child.state is ChildState.RUNNING
        assert lives(child.value)
        await Until(lambda: words(path))
    assert words(path)[1] == "end"


@two_loops
async def test_a_crash_before_that_is_a_failed_start() -> None:
    with pytest.raises(StartError) as caught:
        async with Supervisor([in_process(fns.crash_before_it_starts)], subscribers=()):
            pytest.fail("it must not be entered")
    assert isinstance(caught.value.__cause__, ProcessKilledError)


@pytest.mark.heavy
@three_loops
async def test_a_pool_gets_on_whoever_dies() -> None:
    results: dict[int, int] = {}
    double = in_process(fns.double)

    async def work(number: int) -> None:
        results[number] = await double(number, {2: "crash", 5: "exit", 7: "raise"}.get(number, ""))

    async with DynamicSupervisor(max_restarts=0, subscribers=()) as pool:
        for number in range(10):
            spec = ChildSpec("work", work, (number,), restart=Restart.TEMPORARY)
            await pool.start_child(spec)
        await Until(lambda: pool.count_children().active == 0)
    assert results == {number: 2 * number for number in range(10) if number not in (2, 5, 7)}


@pytest.mark.heavy
@two_loops
async def test_a_call_that_is_cancelled_at_any_await_leaves_nothing(world: World) -> None:
    number = 1
    while await cancelled_at(number, lambda: in_process(fns.add, grace=0.2)(1)):
        world.check()
        number += 1
    assert number > 5


@one_loop
async def test_what_keeps_it_from_starting_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("multiprocessing.spawn._python_exe", b"/nowhere/python")
    with pytest.raises(FileNotFoundError):
        await in_process(fns.add)(1)
