"""A supervisor on every loop, in real time."""

from __future__ import annotations

from typing import Any

import anyio
import anyio.lowlevel
import pytest

from backplane.supervisor import (
    BRUTAL_KILL,
    Backoff,
    ChildSpec,
    MaxRestartsError,
    Strategy,
    Supervisor,
)

pytestmark = pytest.mark.anyio


async def test_children_start_restart_and_stop_in_order() -> None:
    log: list[str] = []
    restarted = anyio.Event()

    def child(name: str) -> ChildSpec:
        async def run() -> None:
            log.append(f"+{name}")
            try:
                if name == "c" and log.count("+c") == 1:
                    await anyio.lowlevel.checkpoint()
                    raise ValueError
                if name == "c":
                    restarted.set()
                await anyio.sleep_forever()
            finally:
                log.append(f"-{name}")

        return ChildSpec(name, run)

    children = [child(name) for name in "abc"]
    async with Supervisor(children, strategy=Strategy.ONE_FOR_ALL, backoff=Backoff(0.01)):
        with anyio.fail_after(10):
            await restarted.wait()
    assert log == "+a +b +c -c -b -a +a +b +c -c -b -a".split()  # noqa: SIM905 - it is a score


async def test_giving_up_cancels_the_block() -> None:
    async def bad() -> None:
        raise ValueError

    with pytest.raises(MaxRestartsError):
        async with Supervisor([bad]):
            await anyio.sleep(10)


async def test_a_subtree_is_killed() -> None:
    alive = 0

    async def worker() -> None:
        nonlocal alive
        alive += 1
        try:
            await anyio.sleep_forever()
        finally:
            alive -= 1

    workers = [ChildSpec(f"{n}", worker) for n in range(3)]
    inner = Supervisor(workers, name="inner")
    spec = ChildSpec("inner", inner.run, is_supervisor=True, shutdown=BRUTAL_KILL)
    async with Supervisor([spec]):
        while alive < 3:
            await anyio.lowlevel.checkpoint()
    for _ in range(20):
        await anyio.lowlevel.checkpoint()
    assert alive == 0


def test_a_program_that_ends_inside_the_block_ends_the_children(
    anyio_backend: tuple[str, dict[str, Any]],
) -> None:
    log: list[str] = []

    async def run() -> None:
        log.append("begin")
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            with anyio.CancelScope(shield=True):
                for _ in range(300):  # trio cancels the supervisor too, and at each turn again
                    await anyio.lowlevel.checkpoint()
            raise
        finally:
            log.append("end")

    supervisor = Supervisor([ChildSpec(name, run) for name in "ab"])

    async def main() -> None:
        await supervisor.__aenter__()
        while len(log) < 2:
            await anyio.lowlevel.checkpoint()

    anyio.run(main, backend=anyio_backend[0], backend_options=anyio_backend[1])
    assert log == ["begin", "begin", "end", "end"]
