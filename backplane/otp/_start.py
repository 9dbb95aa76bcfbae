"""Starting servers: in a scope, under a supervisor, by name."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, Generic, Unpack, final

from anyio.abc import TaskStatus

from backplane import Device
from backplane.lowlevel import clock, new_parking, outlast
from backplane.supervisor import ChildSpec, Ignore

from ._brief import brief
from ._errors import InitError
from ._gen_server import GenServer
from ._handles import Pid, Ref, current_process
from ._ledger import AlreadyRegisteredError
from ._loop import begin
from ._mailbox import Overflow, check_capacity
from ._names import current_registry, register
from ._process import Process
from ._reasons import KILL, ExitReason
from ._scope import Scope, SpecFields, current_scope
from ._server import S, ServerRef


@final
class Startup(Generic[S]):
    """A server on its way up: it can be talked to already, and waited for."""

    def __init__(self, starting: _Starting[S], pid: Pid) -> None:
        self._starting = starting
        self.ref: ServerRef[S] = ServerRef(pid, starting.kind)
        """Its handle: what it is sent is handled after ``init``."""

    async def wait(self, timeout: float | None = None) -> ServerRef[S]:  # noqa: ASYNC109
        """Wait until ``init`` has returned, and return the handle.

        Args:
            timeout: Seconds that it may still take; then it is killed.

        Raises:
            Ignore: So said its ``init``: there is nothing to serve. That is no failure.
            InitError: It did not start; ``reason`` says why. Nothing of it is left, its
                name is free. If the call is cancelled, the same holds.
        """
        starting, pid = self._starting, self.ref.pid
        process = pid._process
        try:
            reason = await starting.wait(process, timeout)
        except BaseException:  # whoever waits has given it up
            pid.exit(KILL)
            await outlast(lambda: not pid.alive, process.wait)
            raise
        if starting.ignored:
            raise Ignore
        if not starting.started:
            if reason is None:
                pid.exit(KILL)
                await process.wait()
                reason = TimeoutError(f"init took more than {timeout} seconds")
            error = InitError(starting.kind.__name__, reason)
            raise error from (reason if isinstance(reason, BaseException) else None)
        return self.ref


def start_soon(
    kind: type[S],
    *args: Any,
    name: str | None = None,
    link: bool = False,
    scope: Scope | None = None,
    capacity: int | None = None,
    overflow: Overflow = Overflow.RAISE,
    at_start: Callable[[Pid], object] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    **more: Any,
) -> Startup[S]:
    """As ``start``, without waiting: ``ref`` of what it returns is the handle, ``wait()`` waits."""
    _check(kind, name, capacity)
    starting = _Starting(kind, args, dict(kwargs or {}, **more), name)
    parent = current_process("link") if link else None
    starting.at_start = at_start if parent is None else parent.link
    pid = (scope or current_scope()).spawn(
        starting.run, label=kind.label or kind.__name__, capacity=capacity, overflow=overflow
    )
    if parent is not None:
        pid._process.parent = parent.pid
    return Startup(starting, pid)


async def start(
    kind: type[S],
    *args: Any,
    timeout: float | None = None,  # noqa: ASYNC109
    **options: Any,
) -> ServerRef[S]:
    """Start a server in a scope, and wait until its ``init`` has returned.

    Args:
        kind: The class.
        args: For its ``init``.
        timeout: Seconds that ``init`` may take; then it is killed.
        options: For its ``init``, by name; but for these.

            * ``name``: register it under this name, before ``init``.
            * ``link=True``: link it with the calling process, as soon as ``init`` has
              returned: a failed start is told once, by the exception.
            * ``scope``: where it lives; by default the innermost around the calling code.
            * ``capacity``: how many messages its mailbox holds; by default any number.
            * ``overflow``: what happens to one more.
            * ``at_start``: is called with its pid as soon as ``init`` has returned, before
              anything else of it happens.
            * ``kwargs``: more for its ``init``, by name: also what is called as one of these.

    Raises:
        Ignore: So said its ``init``: there is nothing to serve. That is no failure.
        InitError: It did not start; ``reason`` says why. Nothing of it is left, its
            name is free. If the call is cancelled, the same holds.
    """
    return await start_soon(kind, *args, **options).wait(timeout)


async def get_or_start(name: str, kind: type[S], *args: Any, **options: Any) -> ServerRef[S]:
    """The server that has a plain name; if nobody has, one that is started now.

    Of any number that ask at once, one starts it. The others get its handle at
    once: what they send it is handled after its ``init``, and if that fails they
    get a ``ServerDownError``.

    Args:
        name: Is looked up, and registered, in the registry around the calling code.
        kind: As for ``start``, and all that follows.
        args: See there.
        options: See there.

    Raises:
        Ignore: As for ``start``.
        InitError: As for ``start``.
        NoRegistryError: No registry is around the calling code.
    """
    pid = current_registry().whereis(name)
    if pid is None:
        try:
            return await start(kind, *args, name=name, **options)
        except InitError as error:
            taken = error.reason
            if not isinstance(taken, AlreadyRegisteredError) or taken.key != name:
                raise
            pid = taken.pid
    return ServerRef(pid, kind)


def _check(kind: type[GenServer], name: str | None, capacity: int | None) -> None:
    """Refuse what can be no server, before anything is started."""
    if not (isinstance(kind, type) and issubclass(kind, GenServer)):
        raise TypeError(f"a server is started of a subclass of GenServer, not of {brief(kind)}")
    if not isinstance(name, str | None):
        raise TypeError(f"a server's name is a str, not {brief(name)}")
    check_capacity(capacity)


async def start_monitor(kind: type[S], *args: Any, **options: Any) -> tuple[ServerRef[S], Ref]:
    """As ``start``, monitored by the calling process from the moment that ``init`` has returned."""
    caller, refs = current_process("monitor"), []
    ref = await start(kind, *args, **options, at_start=lambda pid: refs.append(caller.monitor(pid)))
    return ref, refs[0]


def child_spec(
    kind: type[GenServer],
    *args: Any,
    id: str | None = None,
    name: str | None = None,
    capacity: int | None = None,
    overflow: Overflow = Overflow.RAISE,
    kwargs: dict[str, Any] | None = None,
    **fields: Unpack[SpecFields],
) -> ChildSpec:
    """A specification with which a supervisor runs a server.

    The supervisor waits for ``init``; ``which_child(id).value`` is a ``ServerRef``.
    Each restart makes a new instance, and so a fresh state.

    Args:
        kind: The class.
        args: For its ``init``.
        id: The child's; by default the name, or that of the class.
        name: Register it under this name.
        capacity: How many messages its mailbox holds; by default any number.
        overflow: What happens to one more.
        kwargs: For its ``init``, by name.
        fields: Of the ``ChildSpec``: ``restart``, ``shutdown`` and so on.
    """
    _check(kind, name, capacity)

    async def run(*, device: Device, task_status: TaskStatus[ServerRef[Any]]) -> None:
        process = Process(device, capacity=capacity, overflow=overflow)
        starting = _Starting(kind, args, kwargs or {}, name)
        starting.on_start = lambda: task_status.started(ServerRef(process.pid, kind))
        await process.run(starting.run)
        if starting.ignored:
            raise Ignore

    return ChildSpec(id or name or kind.__name__, run, gets_device=True, **fields)


@final
class _Starting(Generic[S]):
    """A server on its way up."""

    kind: type[S]
    started: bool
    ignored: bool

    def __init__(
        self, kind: type[S], args: tuple[Any, ...], kwargs: dict[str, Any], name: str | None
    ) -> None:
        self.kind = kind
        self._args = args
        self._kwargs = kwargs
        self._name = name
        self._parking = new_parking()
        self.started = self.ignored = False
        self.on_start: Callable[[], object] | None = None
        self.at_start: Callable[[Pid], object] | None = None

    async def run(self) -> None:
        """Be the server."""
        process = current_process()
        if self._name is not None:
            register(self._name)
        server = self.kind()
        args, kwargs = self._args, self._kwargs
        self._args, self._kwargs = (), {}  # not for as long as it lives
        init = functools.partial(server.init, *args, **kwargs)
        del args, kwargs
        try:
            loop = await begin(server, process, init)
            self._has_started()
            del server, process, init
            await loop.run()
        except Ignore:
            if self.started:
                raise
            self.ignored = True

    def _has_started(self) -> None:
        self.started = True
        if self.at_start is not None:
            self.at_start(current_process().pid)
        self._parking.wake()
        if self.on_start is not None:
            self.on_start()
        self.at_start = self.on_start = None

    async def wait(self, process: Process, timeout: float | None) -> ExitReason | None:  # noqa: ASYNC109
        """Wait until it has started, ended, or has taken too long; return why it ended."""
        deadline = None if timeout is None else clock()() + timeout
        process.at_end(self._parking.wake)
        while not self.started and process.pid.alive:
            if deadline is None:
                await self._parking.park()
            elif clock()() < deadline:
                await self._parking.park_until(deadline)
            else:
                return None
        process.not_at_end(self._parking.wake)
        return None if self.started else await process.wait()
