"""What the upper tiers are made of, for those who write supervisors of their own.

These names are stable but sharp: most programs need none of them.

* ``start_job`` starts a task that belongs to nobody but you: cheaper than a
  task group, and it can be killed for real on asyncio. See ``Job``.
* ``hold`` has what runs outside of any loop, a process, die with the job that
  started it, until ``release``. See ``Killable``.
* ``new_parking`` makes a place where one task sleeps until it is woken, from
  any thread: cheaper than an event, and a wake is never lost.
* ``checkpoint`` lets other tasks run.
* ``Guard`` hands the messages of a Device to a function while a block runs.
* ``outlast`` waits for something that has to be over first, whoever cancels.
* ``set_alarm`` has a function called at a time.
* ``clock`` gives the function that tells the time of the running loop.
* ``Outpost`` is the near end of a Device that lives elsewhere.
* ``end_of`` tells why a Device has ended, without a link.
* ``on_alive`` is what the calling work reports to that it is alive.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar

from ._guard import Decide, Guard
from ._loop import (
    Alarm,
    Job,
    Killable,
    Parking,
    checkpoint,
    clock,
    current_job,
    hold,
    new_parking,
    release,
    set_alarm,
    start_job,
)
from ._outlast import outlast
from ._outpost import (
    Forgotten,
    Heard,
    Listening,
    Outpost,
    OutpostEvent,
    Sent,
    Unlistening,
    end_of,
    outpost_of,
)

__all__ = [
    "Alarm",
    "Decide",
    "Forgotten",
    "Guard",
    "Heard",
    "Job",
    "Killable",
    "Listening",
    "Outpost",
    "OutpostEvent",
    "Parking",
    "Sent",
    "Unlistening",
    "checkpoint",
    "clock",
    "current_job",
    "end_of",
    "hold",
    "new_parking",
    "on_alive",
    "outlast",
    "outpost_of",
    "release",
    "set_alarm",
    "start_job",
]

on_alive: ContextVar[Callable[[], object]] = ContextVar("backplane.on_alive")
"""What hears that the calling work is alive: set by who looks after it, called by the work.

A supervisor sets it for each of its children, to what ``backplane.supervisor.alive`` calls, and
the bridge does in a child process, to what tells the parent. Tasks and threads that the work
starts with its context have it too; of several around them the innermost is meant. It may be
called from any thread, often, and returns at once. Where nobody looks after the calling code,
``get`` raises ``LookupError``.
"""
