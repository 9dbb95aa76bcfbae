"""Child processes that say that they are alive, and watchdogs that hear of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio
import pytest

from backplane import Killed
from backplane.bridge import _child_work, in_process
from backplane.bridge._child import ChildProcess
from backplane.bridge._child_control import Kind, frame
from backplane.bridge._child_exit import Returned, Stopped
from backplane.lowlevel import on_alive
from backplane.supervisor import (
    ChildExited,
    ChildKilled,
    ChildSpec,
    ChildUnresponsive,
    Event,
    Supervisor,
    in_thread,
)

if TYPE_CHECKING:  # mypy knows the tests as single files, pytest as parts of packages
    import child_alive as fns
    import child_functions
    from child_world import Until, lives, words
else:
    from . import child_alive as fns
    from . import child_functions
    from .child_world import Until, lives, words

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("world")]
one_loop = pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
three_loops = pytest.mark.parametrize("anyio_backend", ["asyncio", "uvloop", "trio"], indirect=True)
two_loops = pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"], indirect=True)
two_backends = pytest.mark.parametrize("backend", ["asyncio", "trio"])


class Ear:
    """Looks after the calling code: it counts its reports."""

    def __init__(self) -> None:
        self.heard = 0
        on_alive.set(self.hear)

    def hear(self) -> None:
        self.heard += 1


# -- who reports, and to whom ----------------------------------------------------------


@three_loops
@two_backends
async def test_an_async_function_reports(backend: Any) -> None:
    ear = Ear()
    assert await in_process(fns.report_async, backend=backend)() == "reported"
    assert ear.heard == 1


@three_loops
async def test_a_plain_function_reports() -> None:
    ear = Ear()
    assert await in_process(fns.report)() == "reported"
    assert ear.heard == 1


@one_loop
@pytest.mark.parametrize(
    "fn",
    [
        fns.report_from_a_thread,
        fns.report_from_a_worker,
        fns.report_from_a_task,
        fns.report_from_a_loop,
        fns.report_from_a_process_below,
    ],
)
async def test_what_has_the_functions_context_reports_for_it(fn: Any) -> None:
    ear = Ear()
    assert await in_process(fn)() == "reported"
    assert ear.heard == 1


@one_loop
async def test_a_child_of_a_supervisor_in_the_process_reports_to_that() -> None:
    ear = Ear()
    assert await in_process(fns.report_to_a_supervisor_here)() == 1
    assert ear.heard == 0


@one_loop
@pytest.mark.parametrize("fn", [fns.report, fns.report_async])
async def test_where_nobody_looks_after_the_call_there_is_nobody_to_report_to(fn: Any) -> None:
    with pytest.raises(LookupError, match="no supervised child is calling"):
        await in_process(fn)()


@one_loop
async def test_of_a_child_that_is_told_to_report_to_nobody_a_report_is_ignored() -> None:
    assert await in_process(fns.send_a_report)(b"") == "returned"


@one_loop
async def test_what_else_is_in_a_report_is_ignored() -> None:
    ear = Ear()
    assert await in_process(fns.send_a_report)(b"more") == "returned"
    assert ear.heard == 1


@one_loop
@pytest.mark.parametrize("fn", [child_functions.sleep_async, child_functions.sleep_plainly])
async def test_a_report_of_the_parent_is_a_stop_as_is_all_that_it_sends(fn: Any, path: str) -> None:
    async with ChildProcess(fn, path, grace=20) as child:
        await Until(lambda: words(path))
        await child.stream.send(frame(Kind.ALIVE))
        with anyio.fail_after(20):
            assert await child.wait() == Stopped()


# -- often, late, and with no room -------------------------------------------------------


@two_loops
@pytest.mark.parametrize("fn", [fns.report_much, fns.report_much_async])
async def test_few_of_many_reports_are_sent(fn: Any) -> None:
    ear = Ear()
    seconds = await in_process(fn)(100_000)
    assert 1 <= ear.heard <= 2 + seconds / _child_work._PAUSE


@one_loop
@pytest.mark.parametrize("fn", [fns.report_in_vain, fns.report_in_vain_async])
async def test_reports_that_nobody_reads_block_nothing_and_grow_nothing(fn: Any, path: str) -> None:
    ear = Ear()
    async with ChildProcess(fn, path, 100_000, on_alive=ear.hear) as child:
        await Until(lambda: words(path))
        assert ear.heard == 0
        with anyio.fail_after(20):
            end = await child.wait()

    assert isinstance(end, Returned)
    assert end.value < 100_000
    assert 1 <= ear.heard < 10_000


@two_loops
@two_backends
async def test_one_that_never_awaits_reports_and_keeps_frames_whole(
    backend: Any, path: str
) -> None:
    ear = Ear()
    started: list[bytes] = []
    size = 3_000_000
    child = ChildProcess(
        fns.start_and_block, path, size,
        backend=backend, on_started=started.append, on_alive=ear.hear,
    )  # fmt: skip
    fns.say(path, "begin")
    async with child, anyio.create_task_group() as tg:
        tg.start_soon(child.wait)
        await Until(lambda: started and ear.heard > 3)
        fns.say(path, "go")

    assert started == [size * b"x"]
    assert child.exit == Returned("returned")


@one_loop
async def test_a_report_after_the_end_is_nothing(path: str) -> None:
    ear = Ear()
    assert await in_process(fns.report_after_the_end, grace=20)(path) == "returned"
    assert words(path) == ["late"]
    assert ear.heard == 1


# -- watchdogs ---------------------------------------------------------------------------


@two_loops
@pytest.mark.parametrize(
    "run",
    [
        in_process(fns.hang_at_first, grace=1000),
        in_process(fns.block_at_first, grace=1000),
        in_process(fns.block_at_first, grace=1000, backend="trio"),
        in_process(fns.stop_at_first, grace=1000),
    ],
    ids=["plain", "asyncio", "trio", "SIGSTOP"],
)
async def test_a_watchdog_kills_one_that_hangs_and_starts_another(run: Any, path: str) -> None:
    events: list[Event] = []
    spec = ChildSpec("worker", run, (path,), watchdog=2, shutdown=20)
    supervisor = Supervisor([spec], max_restarts=100, subscribers=[events.append], name="top")
    async with supervisor:
        await Until(lambda: len(words(path)) > 1)
        first, second, *_ = map(int, words(path))
        assert not lives(first)
        assert supervisor.which_child("worker").restarts >= 1
    assert not lives(second)

    kinds = [type(event) for event in events]
    assert kinds.index(ChildUnresponsive) < kinds.index(ChildKilled) < kinds.index(ChildExited)
    assert not any(event.zombie for event in events if isinstance(event, ChildKilled))
    exited = next(event for event in events if isinstance(event, ChildExited))
    assert isinstance(exited.fault, Killed)


@pytest.mark.heavy
@one_loop
@pytest.mark.parametrize(
    "run",
    [
        in_process(fns.report_again_and_again),
        in_thread(in_process(fns.report_again_and_again_async)),
    ],
    ids=["plain", "from a thread"],
)
async def test_a_watchdog_leaves_one_alone_that_reports(run: Any, path: str) -> None:
    async with Supervisor([ChildSpec("worker", run, (path,), watchdog=6)]) as supervisor:
        await Until(lambda: words(path))
        await anyio.sleep(7)
        assert supervisor.which_child("worker").restarts == 0
        assert len(words(path)) == 1


@three_loops
@pytest.mark.parametrize(
    "run",
    [
        in_process(fns.report_again_and_again),
        in_process(fns.report_again_and_again_async),
        in_thread(in_process(fns.report_again_and_again_async)),
    ],
    ids=["plain", "async", "from a thread"],
)
async def test_its_supervisor_hears_each_report(run: Any, path: str) -> None:
    async with Supervisor([ChildSpec("worker", run, (path,), watchdog=1000)]) as supervisor:
        engine = supervisor._engine
        assert engine is not None
        child = engine.children["worker"]
        heard = {child.alive_at}

        def hear() -> bool:
            heard.add(child.alive_at)
            return len(heard) > 4

        await Until(hear)
