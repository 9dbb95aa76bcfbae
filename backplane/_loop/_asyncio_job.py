"""asyncio: tasks that are started for somebody else, and killed for real."""

from __future__ import annotations

import asyncio
import contextvars
import gc
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Generator
from functools import partial
from types import FrameType
from typing import Any, NoReturn, cast, final

from . import _seat
from ._asyncio import TURNS
from ._held_job import bury_held, kill_held


class _Kill(GeneratorExit):
    """Thrown once into a coroutine that will never be stepped again."""


_THROWS = 4
"""How often a kill throws ``GeneratorExit`` at most, into one coroutine."""

_undead: list[object] = []
"""What did not end when told to. Were it collected, Python would step it once more."""


def _bury(undead: object) -> None:
    """Keep something for ever, even when the interpreter ends and empties all modules.

    A loop that swallows everything would then spin: its ``await`` fails by itself.
    """
    _undead.append(undead)
    try:
        import ctypes
    except ImportError:  # pragma: no cover - an interpreter that is built without it
        return
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(undead))


@final
class Job(_seat.Job, Coroutine[Any, None, None]):
    """The coroutine of its own task: it passes each step on, until it is killed.

    asyncio takes any object with ``send``, ``throw`` and ``close`` for a
    coroutine. That costs one call a step, and puts the decision whether the
    real coroutine ever runs again here.
    """

    __slots__ = ("_coroutine", "_fn", "_may_die", "_task")

    _fn: Callable[[], Awaitable[object]] | None
    _coroutine: Coroutine[Any, Any, object] | Generator[Any, Any, object] | None
    _task: asyncio.Task[None]
    _may_die: bool
    """Whether the tasks that it has started are dead, once it is killed."""

    def __init__(
        self,
        fn: Callable[[], Awaitable[object]],
        on_end: Callable[[_seat.Job], None],
        name: str,
        owner: object,
    ) -> None:
        self.name = name
        self.owner = owner
        self.parent = _seat._job.get()
        self.done = self.killed = False
        self.exception = None
        self._on_end = on_end
        self._fn = fn
        self._coroutine = None
        self._may_die = False
        context = contextvars.copy_context()
        context.run(_seat._job.set, self)
        loop = asyncio.get_running_loop()
        # Not by loop.create_task: an eager factory would step this before it is made.
        self._task = asyncio.Task(self, loop=loop, name=name, context=context)

    def cancel(self) -> None:
        self._task.cancel()

    async def kill(self) -> bool:
        self.killed = True
        kill_held(self)  # which takes a while
        await self._kill_tasks()
        return await bury_held(self) and self.done

    async def _kill_tasks(self) -> None:
        for turn in range(TURNS):
            descendants = self._descendants()
            if not descendants:
                break
            for task, job in descendants:
                if job is None:
                    _close(task, by_force=turn >= TURNS // 2)
                else:
                    job.killed = job._may_die = True
                    task.cancel()
                    if turn == TURNS // 2:
                        _wake(task)
            await asyncio.sleep(0)
        self._may_die = True
        for turn in range(TURNS):
            if self.done:
                return
            if turn == 0:
                self._task.cancel()
            elif turn == TURNS // 2:
                _wake(self._task)
            await asyncio.sleep(0)

    def stack(self) -> list[tuple[FrameType, int]]:
        frames = [link.cr_frame for link in _chain_of(self._coroutine)]
        return [(frame, frame.f_lineno) for frame in frames]

    # -- as a coroutine: the task steps this, in the task's context

    def send(self, value: object) -> Any:
        if self.killed:
            return self._die()
        coroutine = self._coroutine
        if coroutine is None:
            coroutine = self._begin()
        try:
            return coroutine.send(value)
        except StopIteration:
            self._finish(None)
        except BaseException as exc:  # noqa: BLE001 - it is the owner's
            self._finish(exc)

    def _begin(self) -> Any:
        assert self._fn is not None
        try:
            coroutine = self._coroutine = _coroutine_of(self._fn())
        except BaseException as exc:  # noqa: BLE001 - even StopIteration is an error here
            self._finish(exc)
        self._fn = None
        return coroutine

    def throw(self, exc: Any, value: Any = None, traceback: Any = None) -> Any:
        if self.killed:
            return self._die()
        try:
            if self._coroutine is None:  # cancelled before its first step
                raise exc
            return self._coroutine.throw(exc)
        except StopIteration:
            self._finish(None)
        except BaseException as caught:  # noqa: BLE001 - it is the owner's
            self._finish(caught)

    def close(self) -> None:
        """The loop was closed under the task."""
        if not self.done:
            if self._coroutine is not None:
                self._coroutine.close()
            self.done = True

    def __await__(self) -> Generator[Any, None, None]:
        raise TypeError("a Job runs in its own task; wait for its end with on_end")

    def _die(self) -> Any:
        if not self._may_die:  # its tasks go first: wait until cancelled
            forever: Any = self._task.get_loop().create_future()
            forever._asyncio_future_blocking = True
            return forever
        if self._coroutine is not None:
            _throw_out(self._coroutine)
        return self._finish(None)

    def _finish(self, exc: BaseException | None) -> NoReturn:
        self._coroutine = self._fn = None
        self.exception = exc
        self._end()
        raise StopIteration

    # -- for asyncio's own reports: show the stack of the real coroutine

    @property
    def cr_frame(self) -> Any:
        """The frame in which the coroutine stands."""
        return getattr(self._coroutine, "cr_frame", None)

    @property
    def cr_await(self) -> Any:
        """What the coroutine waits for."""
        return getattr(self._coroutine, "cr_await", None)

    # -- the tasks that it has started

    def _descendants(self) -> list[tuple[asyncio.Task[Any], Job | None]]:
        """The living tasks started within this job, each with the job whose own it is."""
        found: list[tuple[asyncio.Task[Any], Job | None]] = []
        for task in asyncio.all_tasks():
            if task is not self._task and not task.done():
                job = _context_of(task).get(_seat._job)
                if job is not None and _seat.is_within(job, self):
                    coroutine: object = task.get_coro()
                    found.append((task, coroutine if isinstance(coroutine, Job) else None))
        return found


def _coroutine_of(awaitable: Awaitable[Any]) -> Coroutine[Any, Any, object]:
    if hasattr(awaitable, "send"):
        return cast("Coroutine[Any, Any, object]", awaitable)
    return cast("Coroutine[Any, Any, object]", awaitable.__await__())


def _context_of(task: asyncio.Task[Any]) -> contextvars.Context:
    """The context that a task runs in; Python 3.11 has no ``Task.get_context``."""
    get_context: Callable[[], contextvars.Context] | None = getattr(task, "get_context", None)
    if get_context is not None:
        return get_context()  # pragma: no cover - not on Python 3.11
    # The first one that the task refers to; later ones belong to its callbacks.
    return next(  # pragma: no cover - only on Python 3.11
        (thing for thing in gc.get_referents(task) if isinstance(thing, contextvars.Context)),
        contextvars.Context(),
    )


def _throw_out(coroutine: Any) -> bool:
    """Throw ``GeneratorExit`` into a coroutine, from the inside out; tell whether it has ended.

    Each that it awaits is thrown out first, so that an ``await`` in some cleanup
    (of a task group, say, which waits for tasks that are dead) is cut short, and
    the cleanup goes on. One that catches the exception and waits on is kept for
    ever: Python throws another ``GeneratorExit`` into a coroutine that it collects.
    """
    thrown: Counter[Any] = Counter()  # holds them: an id might be used again
    refused: list[Any] = []
    while inner := [link for link in _chain_of(coroutine) if link not in refused]:
        innermost = inner[-1]
        thrown[innermost] += 1
        try:
            innermost.throw(_Kill())
        except BaseException:  # noqa: BLE001 - whatever it raised, it is over
            continue
        if thrown[innermost] == _THROWS:
            refused.append(innermost)
    for each in refused:
        _bury(each)
    return not refused


def _chain_of(coroutine: Any) -> list[Any]:
    """A coroutine, the one that it awaits, and so on, as far as they have not ended."""
    chain = []
    while getattr(coroutine, "cr_frame", None) is not None:
        chain.append(coroutine)
        coroutine = coroutine.cr_await
    return chain


def _close(task: asyncio.Task[Any], by_force: bool) -> None:
    """End a task by its coroutine; if that refuses, see that nothing ever steps it again."""
    if not _detach(task) and not (by_force and task is not asyncio.current_task()):
        # It is between two steps, and the loop (uvloop) shows no way to take the next one
        # back. By force, that step finds the task done, which the loop reports as an error.
        task.cancel()
        return
    if not _context_of(task).run(_throw_out, task.get_coro()):
        _bury(task)
    # As a Future, it is cancelled at once. A step would have it raise a RuntimeError, since
    # its coroutine is over, to task groups that are over too.
    asyncio.Future.cancel(task)


def _wake(task: asyncio.Task[Any]) -> None:
    """Step a task, although it waits for something that will not be cancelled."""
    for step in _detach(task):
        step()


def _detach(task: asyncio.Task[Any]) -> list[Callable[[], object]]:
    """Undo what would step a task; return what steps it all the same."""
    steps: list[Callable[[], object]] = []
    waiter: asyncio.Future[Any] | None = getattr(task, "_fut_waiter", None)
    if waiter is not None:
        loop = waiter.get_loop()
        for wakeup, context in list(getattr(waiter, "_callbacks", None) or ()):
            if getattr(wakeup, "__self__", None) is task:
                waiter.remove_done_callback(wakeup)
                done = loop.create_future()
                done.set_result(None)
                steps.append(partial(loop.call_soon, wakeup, done, context=context))
    loop = task.get_loop()
    for handle in list(getattr(loop, "_ready", ())):
        callback: Any = getattr(handle, "_callback", None)
        if getattr(callback, "__self__", None) is task and not handle.cancelled():
            steps.append(partial(loop.call_soon, callback, *handle._args, context=handle._context))
            handle.cancel()
    return steps
