"""What a job has running outside of its loop, and dies with it: an operating-system process."""

from __future__ import annotations

from typing import Protocol

from . import _seat


class Killable(Protocol):
    """Something outside of any loop that a kill ends for certain."""

    def kill(self) -> None:
        """Have it ended, soon and by force, whether or not it is over. From any thread."""

    async def wait_killed(self) -> bool:
        """Wait until nothing of it is left; not for ever: False if something is."""


_held: dict[Killable, _seat.Job] = {}
"""The job that each one belongs to. Whichever thread's: each step is a single one of a dict."""


def hold(thing: Killable) -> None:
    """Have something killed with the job that is calling, if one is, until it is released.

    A kill of that job, or of one that it is within, returns when it is gone.
    """
    job = _seat.current_job()
    if job is not None:
        _held[thing] = job


def release(thing: Killable) -> None:
    """Undo ``hold``: it is over. Safe in any thread."""
    _held.pop(thing, None)


def kill_held(job: _seat.Job) -> list[Killable]:
    """Kill what a job and its descendants hold; return what was killed."""
    held = [thing for thing, its in _held.copy().items() if _seat.is_within(its, job)]
    for thing in held:
        thing.kill()
    return held


async def bury_held(job: _seat.Job) -> bool:
    """Kill what a job and its descendants hold, and wait; False if any of it cannot be."""
    for thing in kill_held(job):
        if not await thing.wait_killed():
            return False
    return True
