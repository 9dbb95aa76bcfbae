"""A pool of processes whose workers somebody kills, stops, floods or starves."""

from __future__ import annotations

import logging
import os
import random
import resource
import signal
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest

from backplane.bridge import ProcessExitedError, in_process
from backplane.bridge._child import ChildProcess
from backplane.bridge._child_exit import Stopped
from backplane.supervisor import ChildKilled, ChildSpec, DynamicSupervisor, Event, Restart

if TYPE_CHECKING:  # mypy knows the tests as single files, pytest as parts of packages
    import child_functions as fns
    import child_odd as odd
    from child_world import ROOT, Until, children
    from test_child_stop import filled
else:
    from . import child_functions as fns
    from . import child_odd as odd
    from .child_world import ROOT, Until, children
    from .test_child_stop import filled

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("world")]
one_loop = pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
two_loops = pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"], indirect=True)


@pytest.mark.heavy
@two_loops
@pytest.mark.parametrize("seed", range(2))
async def test_all_work_is_done_whomever_somebody_kills_and_stops(seed: int) -> None:
    choice = random.Random(seed)
    results: dict[int, int] = {}
    events: list[Event] = []
    work = in_process(odd.double_beside_a_sleeper, grace=0.1, term_grace=0.1)

    async def worker(number: int) -> None:
        with anyio.move_on_after(20):  # for one that is stopped in its tracks
            results[number] = await work(number)
            return
        raise TimeoutError

    async with DynamicSupervisor(max_restarts=1000, subscribers=[events.append]) as pool:
        for number in range(6):
            await pool.start_child(
                ChildSpec("worker", worker, (number,), restart=Restart.TRANSIENT, shutdown=0.1)
            )
        for kind in [signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, signal.SIGSTOP] * 2:
            await Until(lambda: children() or len(results) == 6)
            living = sorted(children())
            for pid in choice.sample(living, min(1, len(living))):
                with suppress(ProcessLookupError):
                    os.kill(pid, kind)
                    if kind is signal.SIGSTOP:
                        os.kill(pid, choice.choice([signal.SIGCONT, signal.SIGKILL]))
            await anyio.sleep(choice.random() / 10)
        await Until(lambda: len(results) == 6)

    assert results == {number: 2 * number for number in range(6)}
    assert not any(event.zombie for event in events if isinstance(event, ChildKilled))


@one_loop
async def test_a_pool_that_lacks_files_says_so_and_leaves_nothing() -> None:
    ends: Counter[str] = Counter()

    async def one() -> None:
        try:
            assert await in_process(fns.add, output="log")(1, 1) == 2
            ends["well"] += 1
        except (OSError, ProcessExitedError) as error:
            ends[type(error).__name__] += 1

    await one()  # what is imported takes files too
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = max(map(int, os.listdir("/proc/self/fd"))) + 64
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    filling = list(filled())
    for fd in filling[:60]:
        os.close(fd)
    try:
        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                for _ in range(30):
                    tasks.start_soon(one)
    finally:
        for fd in filling[60:]:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    assert ends["OSError"] > 0
    assert sum(ends.values()) == 31


@pytest.mark.heavy
@two_loops
async def test_one_that_floods_its_parent_with_output_is_stopped() -> None:
    logger = logging.getLogger("backplane.bridge.child")
    before = logger.level
    lines: Counter[str] = Counter()

    class Counting(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines[record.getMessage()] += 1

    handler = Counting()
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        async with ChildProcess(odd.print_for_ever, output="log", grace=20) as child:
            await Until(lambda: lines["y"] > 10_000)
            assert await child.stop() == Stopped()
    finally:
        logger.propagate = True
        logger.setLevel(before)
        logger.removeHandler(handler)
    assert set(lines) <= {"y", ""}


@one_loop
async def test_what_it_prints_onto_a_full_disk_is_its_error(tmp_path: Path) -> None:
    with open("/dev/full", "wb") as full:  # noqa: ASYNC230
        done = await anyio.run_process(
            [sys.executable, odd.__file__, str(tmp_path / "said"), "full"],
            stdout=full,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            check=False,
        )

    assert done.returncode == 1
    assert b"\nOSError: [Errno 28] No space left on device" in done.stderr
