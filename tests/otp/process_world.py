"""What tests of processes share: a process to run in, and one that nothing runs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from backplane import Device
from backplane.otp import NORMAL, Process, Scope


async def within(fn: Callable[[], Awaitable[object]]) -> None:
    """Run a test's body as a process; raise what it raised."""

    async def body() -> None:
        await fn()

    async with Scope() as scope:
        reason = await scope.spawn(body).wait()
    if isinstance(reason, BaseException):
        raise reason
    assert reason is NORMAL


def lone(*, capacity: int | None = None, trap_exit: bool = False) -> Process:
    """A process that no loop runs: for what needs none."""
    return Process(Device("lone"), capacity=capacity, trap_exit=trap_exit)
