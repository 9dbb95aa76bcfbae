"""Children that live in a thread of their own, with an event loop of its own."""

from __future__ import annotations

import contextvars
import functools
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, Literal, ParamSpec, TypeVar, final

import anyio
import sniffio
from anyio.abc import TaskStatus

from backplane import Device, LinkMode, PowerOffCrash, current_device
from backplane.lowlevel import (
    Parking,
    clock,
    current_job,
    new_parking,
    outlast,
    start_job,
)

from ._child import current_child
from ._errors import SpecError
from ._spec import check_async_function

_LOOK = 0.05
"""Seconds between two looks whether a child that waits for its thread has been killed."""

P = ParamSpec("P")
T = TypeVar("T")


def in_thread(
    fn: Callable[P, Awaitable[T]],
    *,
    backend: Literal["asyncio", "trio"] = "asyncio",
    backend_options: Mapping[str, Any] | None = None,
) -> Callable[P, Coroutine[Any, Any, T]]:
    """Make of an async function one that does its work in a new thread, with a loop of its own.

    For a child whose code blocks, or that wants the other library: a blocked
    loop is then its own. The child and the work in the thread are linked: a
    stop asks the work to end and waits for its cleanup, what the work raises
    the child raises, and ``task_status`` and ``alive()`` work from there.

    A thread cannot be killed. If the work does not stop within its grace, the
    child ends as ``Killed`` all the same, and the thread is disowned: its work is
    killed in its own loop as soon as it awaits, as any child would be there (see
    ``Job.kill``). Until then it is a zombie, named in ``tree()`` and counted for
    ``zombie_limit``. It does not keep the process from ending.

    Args:
        fn: An async function.
        backend: What runs it: "asyncio" or "trio".
        backend_options: As for ``anyio.run``.

    Raises:
        SpecError: ``fn`` is no async function.

    Example:
        >>> from backplane.supervisor import ChildSpec, in_thread
        >>> async def crunch(numbers): ...
        >>> ChildSpec("cruncher", in_thread(crunch), ([1, 2, 3],)).id
        'cruncher'
    """
    check_async_function("in_thread", fn)
    if backend not in ("asyncio", "trio"):
        raise SpecError(f"in_thread: backend must be 'asyncio' or 'trio', not {backend!r}")

    @functools.wraps(fn)
    async def run(*args: Any, **kwargs: Any) -> Any:
        work = functools.partial(fn, *args)
        status = kwargs.get("task_status")
        life = _Life(getattr(fn, "__name__", "thread"), status)
        if status is not None:
            kwargs["task_status"] = life
        main = functools.partial(life.main, functools.partial(work, **kwargs))
        options = dict(backend_options or {})
        return await life.run(
            functools.partial(anyio.run, main, backend=backend, backend_options=options)
        )

    return run


@final
class _Life:
    """One call of the function: the work in the thread, and who waits for it here."""

    def __init__(self, name: str, status: TaskStatus[Any] | None) -> None:
        child = current_child()
        if child is not None and child.job is not None:
            name = child.job.name
        self.device = Device(f"{name} (thread)")
        self._name = name
        self._child = child
        self._status = status
        self._started: deque[Any] = deque()
        self._parking = new_parking()
        self._there: Parking | None = None
        """Where the work's loop is woken to kill it."""
        self._disowned = False
        self._over = False
        self._result: Any = None
        self._error: BaseException | None = None

    def started(self, value: Any = None) -> None:
        """Be the ``task_status`` of the work: pass it on to the child's loop."""
        self._started.append(value)
        self._parking.wake()

    async def run(self, main: Callable[[], Any]) -> Any:
        """Run the thread, and wait for its end."""
        try:
            owner = current_device()
        except LookupError:
            pass  # no supervisor, no link: a cancellation reaches the work all the same
        else:
            self.device.link(owner, LinkMode.MONITOR)
        context = contextvars.copy_context()
        context.run(sniffio.current_async_library_cvar.set, None)  # it has none yet
        thread = threading.Thread(
            target=context.run, args=(self._body, main), name=self._name, daemon=True
        )
        if self._child is not None:
            self._child.thread = thread
        thread.start()
        job = current_job()
        try:
            await self._wait()
        except GeneratorExit:
            raise  # killed: nothing can be waited for
        except BaseException:
            self.device.line().shutdown()
            await outlast(
                lambda: self._over or (job is not None and job.killed), self._wait_a_little
            )
            error = self._error
            if isinstance(error, PowerOffCrash):
                error = error.__context__  # what its cleanup raised, if it did
            if isinstance(error, Exception):
                raise error from None
            raise
        finally:
            if self._over:
                thread.join()  # it has nothing left to do
            else:
                self._disown()
        if self._error is not None:
            raise self._error
        return self._result

    async def _wait_a_little(self) -> None:
        # trio's kill does not wake what is shielded from its cancellation.
        await self._parking.park_until(clock()() + _LOOK)

    def _disown(self) -> None:
        self._disowned = True
        there = self._there
        if there is not None:
            there.wake()

    async def main(self, work: Callable[[], Awaitable[Any]]) -> None:
        """Do the work, in the thread's loop: as a job, which can be killed there."""
        there = self._there = new_parking()

        async def keep() -> None:
            self._result = await self.device.manage(work)

        job = start_job(keep, lambda _: there.wake(), self._name)
        while not (job.done or self._disowned):
            await there.park()
        if not job.done:
            await job.kill()
        elif job.exception is not None:
            raise job.exception

    async def _wait(self) -> None:
        while not self._over:
            await self._parking.park()
            while self._started:
                assert self._status is not None
                self._status.started(self._started.popleft())

    def _body(self, main: Callable[[], Any]) -> None:
        try:
            main()
        except BaseException as error:  # noqa: BLE001 - it is the child's
            self._error = error
        self._over = True
        self._parking.wake()
