"""All that depends on the event loop: waking, parking, cancelling, starting, killing.

Only this package knows asyncio (``_asyncio*``) from trio (``_trio*``), and it
imports neither until a task of theirs asks for it. What the two have to offer
is in ``_seat``; here is the choice between them.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from typing import Any

import sniffio

from ._held_job import Killable, hold, release
from ._seat import Alarm, Job, Parking, Scope, current_job

__all__ = [
    "Alarm",
    "Job",
    "Killable",
    "Parking",
    "Scope",
    "checkpoint",
    "current_job",
    "hold",
    "is_cancellation",
    "new_parking",
    "new_scope",
    "release",
    "set_alarm",
    "start_job",
]


def new_parking() -> Parking:
    """A parking for the current task."""
    parking: Parking = _library().Parking()
    return parking


def new_scope(on_wake: Callable[[], None]) -> Scope:
    """A scope for the current task, not entered yet."""
    scope: Scope = _library().Scope(on_wake)
    return scope


def start_job(
    fn: Callable[[], Awaitable[object]],
    on_end: Callable[[Job], None],
    name: str,
    owner: object = None,
) -> Job:
    """Start a task of its own for ``fn``, in the calling code's loop; see ``Job``.

    Args:
        fn: What it runs.
        on_end: Called once, in its loop, with the job that has ended.
        name: What to call the task.
        owner: Kept as ``job.owner``.
    """
    job: Job = _library().job_class()(fn, on_end, name, owner)
    return job


def clock() -> Callable[[], float]:
    """A function that tells the time of the running loop."""
    told: Callable[[], float] = _library().clock()
    return told


def set_alarm(due: float, fn: Callable[[], object]) -> Alarm:
    """Have ``fn`` called in the running loop, not before ``due`` on its clock."""
    alarm: Alarm = _library().alarm_class()(due, fn)
    return alarm


async def checkpoint() -> None:
    """Let other tasks run, and be cancelled."""
    await _library().checkpoint()


def is_cancellation(exc: BaseException) -> bool:
    """Whether ``exc`` is a loop's way to cancel: alone, or a group of nothing else."""
    if isinstance(exc, BaseExceptionGroup):
        return all(map(is_cancellation, exc.exceptions))
    for library, name in (("asyncio", "CancelledError"), ("trio", "Cancelled")):
        module = sys.modules.get(library)
        if module is not None and isinstance(exc, getattr(module, name)):
            return True
    return False


_loaded: dict[str, Any] = {}


def _library() -> Any:
    """The module of this package that serves the running event loop."""
    name = sniffio.thread_local.name or sniffio.current_async_library_cvar.get()
    if name is None:  # sniffio would look for asyncio now, at some length
        library = _loaded.get("asyncio")
        if library is not None and library.is_running():
            return library
        name = sniffio.current_async_library()
    return _loaded.get(name) or _load(name)


def _load(name: str) -> Any:
    if name == "asyncio":
        from . import _asyncio as library
    elif name == "trio":
        from . import _trio as library  # type: ignore[no-redef]
    else:
        raise RuntimeError(f"a Device can wait under asyncio and trio, not under {name}")
    _loaded[name] = library
    return library
