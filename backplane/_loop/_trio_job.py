"""trio: tasks that are started for somebody else."""

from __future__ import annotations

import contextvars
from collections.abc import Awaitable, Callable
from types import FrameType
from typing import final

import trio

from . import _seat
from ._held_job import bury_held

_TURNS = 10
"""Turns of the loop that each killed task gets to end in: one may wait for another's end."""
_MOST = 20
"""For so many tasks at most."""


@final
class Job(_seat.Job):
    """A system task of trio's: it belongs to no nursery of the user's, and may outlive them."""

    __slots__ = ("_scope", "_task")

    starts_in_order = False

    _scope: trio.CancelScope
    _task: trio.lowlevel.Task | None

    def __init__(
        self,
        fn: Callable[[], Awaitable[object]],
        on_end: Callable[[_seat.Job], None],
        name: str,
        owner: object,
    ) -> None:
        super().__init__(on_end, name, owner)
        self._scope = trio.CancelScope()
        context = contextvars.copy_context()
        context.run(_seat._job.set, self)
        self._task = trio.lowlevel.spawn_system_task(self._run, fn, name=name, context=context)

    async def _run(self, fn: Callable[[], Awaitable[object]]) -> None:
        try:
            with self._scope:
                await fn()
        except BaseException as exc:  # noqa: BLE001 - it is the owner's
            self.exception = exc
        self._task = None
        self._end()

    def cancel(self) -> None:
        self._scope.cancel()

    def stack(self) -> list[tuple[FrameType, int]]:
        return [] if self._task is None else list(self._task.iter_await_frames())

    async def kill(self) -> bool:
        jobs = self._with_descendants()
        for job in jobs:
            job.killed = True
            job.cancel()
        for _ in range(_TURNS * min(len(jobs), _MOST)):
            with trio.CancelScope(shield=True):
                if not await bury_held(self):
                    return False
            if self.done:
                break
            await trio.lowlevel.cancel_shielded_checkpoint()
        return self.done

    def _with_descendants(self) -> list[_seat.Job]:
        root = trio.lowlevel.current_root_task()
        assert root is not None
        jobs: list[_seat.Job] = [self]
        for nursery in root.child_nurseries:  # one of them is that of the system tasks
            for task in nursery.child_tasks:
                job = task.context.get(_seat._job)
                if job is not None and job is not self and _seat.is_within(job, self):
                    jobs.append(job)
        return jobs
