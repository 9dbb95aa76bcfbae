"""Child processes: one function in an interpreter of its own, and how it ended."""

from __future__ import annotations

import os
import pickle
import re
import socket
import warnings
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, final

import anyio
from anyio.abc import ByteStream

from backplane.lowlevel import outlast

from ._child_control import Conversation, Kind, frame
from ._child_exit import (
    Exit,
    Exited,
    NotSendableError,
    Raised,
    Returned,
    Signalled,
    Stopped,
    value_of,
)
from ._child_keeper import Keeper
from ._child_payload import make_boot, name_of, pack_call, unpack_exception, unpack_value
from ._child_stream import PrivateStream
from ._errors import FrameError

if TYPE_CHECKING:  # a child process that needs none does not load it
    from ._node import Node

_UNFIT = re.compile(r"[^A-Za-z0-9._@-]")
"""What may not be in the name of a node."""

Backend = Literal["asyncio", "trio"]
Output = Literal["inherit", "log"]


@final
class ChildProcess:
    """A function that runs in an operating-system process of its own.

    The process is a new interpreter, with its own session and process group, started with
    ``exec`` and not a copy of this one. It never outlives this process, however this one
    ends, and its own children never outlive it, unless they leave its process group.

    ::

        async with ChildProcess(work, 1, 2) as child:
            exit = await child.wait()

    Args:
        fn: A function that can be imported; a plain one or an ``async def``.
        args: Its arguments, which are pickled, at once.
        kwargs: Its keyword arguments.
        name: What to call the process in reports; by default the function's name.
        backend: The loop of an async function: "asyncio" or "trio".
        backend_options: As for ``anyio.run``, ``{"use_uvloop": True}`` for example.
        output: "inherit": it prints where this process prints. "log": each line that it
            prints becomes a record of the logger ``backplane.bridge.child``, INFO for
            standard output and WARNING for standard error, with ``child_name``,
            ``child_pid`` and ``child_stream`` as fields. What it logs goes, in either case,
            to the loggers of the same names here.
        grace: Seconds that the function may take to end after being asked, and the process
            after the function has ended; then SIGTERM follows, and a warning in the log.
        term_grace: Seconds from SIGTERM to SIGKILL, of which the log is told likewise.
        node: A node that ``parent_node`` connects the process with, if its function says so.
        on_started: Makes the function get a ``task_status``, and is called in ``wait``
            with what the function gives to ``task_status.started``.
        on_alive: Called in ``wait`` when the function has reported that it is alive.

    Raises:
        NotSendableError: The function cannot be found by another process, or its
            arguments cannot be pickled. Nothing was started.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        *args: Any,
        kwargs: Mapping[str, Any] | None = None,
        name: str | None = None,
        backend: Backend = "asyncio",
        backend_options: Mapping[str, Any] | None = None,
        output: Output = "inherit",
        grace: float = 3.0,
        term_grace: float = 1.0,
        on_started: Callable[[Any], object] | None = None,
        on_alive: Callable[[], object] | None = None,
        node: Node | None = None,
    ) -> None:
        self._keeper: Keeper | None = None
        check_options(backend, output, grace, term_grace)
        self._what = name_of(fn)
        self.name: str = name or str(getattr(fn, "__name__", "process"))
        self._boot = make_boot(pack_call(fn, args, dict(kwargs or {})), self.name)
        self._boot["backend"] = backend
        self._boot["backend_options"] = pickle.dumps(dict(backend_options or {}))
        self._boot["reports_start"] = on_started is not None
        self._boot["reports_alive"] = on_alive is not None
        self._output = output
        self._grace = grace
        self._term_grace = term_grace
        self._on_started = on_started
        self._on_alive = on_alive
        self._node = node
        self._mesh: PrivateStream | None = None
        self._ready = self._let_go = False
        self._outcome: Exit | None = None
        self._stream: PrivateStream | None = None
        self._talk: Conversation | None = None
        self._reading = anyio.Lock()

    @property
    def pid(self) -> int | None:
        """The number of the process, once it was started."""
        return None if self._keeper is None else self._keeper.pid

    @property
    def over(self) -> bool:
        """Whether the process has ended and was reaped."""
        return self._keeper is not None and self._keeper.over

    @property
    def stream(self) -> ByteStream:
        """The private socket to the child, once ``start`` has returned."""
        if self._stream is None or not self._ready:
            raise RuntimeError(f"process {self.name!r} has not been started")
        return self._stream

    @property
    def exit(self) -> Exit | None:
        """How it ended; None as long as it is not ``over``.

        What the function made known counts, even if the process crashed on its way out.
        """
        keeper = self._keeper
        if keeper is None or not keeper.over:
            return None
        if self._outcome is not None:
            return self._outcome
        status = keeper.status
        if status is None:
            return None
        if status.signal is not None:
            return Signalled(status.signal, status.out_of_memory)
        return Exited(status.code)

    async def start(self) -> None:
        """Start the process, and wait until it has found the function.

        Cancelling it, or an error, leaves no process.

        Raises:
            OSError: The process could not be started.
            Exception: What was raised in the child when it looked for the function.
            ProcessExitedError: It exited instead.
            ProcessKilledError: It was killed instead.
        """
        if self._keeper is not None:
            raise RuntimeError(f"process {self.name!r} was started already")
        mesh = None
        if self._node is not None:
            near, mesh = socket.socketpair()
            self._mesh = PrivateStream(near)
            name = f"{self._node.name}.{_UNFIT.sub('_', self.name)[:100]}-{os.urandom(4).hex()}"
            self._boot["nodes"] = self._node.name, name, os.urandom(32)
        keeper = Keeper(self.name, self._output, mesh)
        stream = PrivateStream(keeper.socket)
        try:
            keeper.start()
        except BaseException:  # there can be no more threads
            stream.close()
            raise
        self._keeper, self._stream, self._talk = keeper, stream, Conversation(stream)
        try:
            await self._begin(keeper, self._talk)
        except GeneratorExit:
            self.close()  # nothing can be awaited
            raise
        except BaseException:
            keeper.kill()
            try:
                await outlast(lambda: keeper.over, keeper.wait_over)
            finally:
                self.close()
            raise

    async def _begin(self, keeper: Keeper, talk: Conversation) -> None:
        await keeper.wait_spawned()
        if keeper.error is not None:
            raise keeper.error
        self._boot["watch"] = not keeper.watched_by_kernel
        await talk.send(frame(Kind.BOOT, pickle.dumps(self._boot)))
        self._boot["call"] = b""  # it may be large
        found = await talk.receive()
        if found is not None and found[0] is Kind.READY:
            self._ready = True
            return
        self._note(found)
        await self._see_off(keeper)
        if keeper.error is not None:
            raise keeper.error
        assert self.exit is not None
        value_of(self.exit, self.name, self.pid)

    async def wait(self) -> Exit:
        """Wait until the process has ended.

        Its own children are killed by then. Cancelling this loses nothing, and does not
        stop the process.
        """
        keeper, talk = self._keeper, self._talk
        if keeper is None or talk is None or not self._ready:
            raise RuntimeError(f"process {self.name!r} has not been started")
        async with self._reading:
            while self._outcome is None:
                try:
                    found = await talk.receive()
                    if found is None:
                        break
                    self._note(found)
                except FrameError as error:  # its memory is a mess, or its code sends on our socket
                    self._outcome = Raised(error)
                    keeper.kill()
        await self._see_off(keeper)
        end = self.exit
        assert end is not None
        return end

    async def _see_off(self, keeper: Keeper) -> None:
        """Wait for the end of a process that has no work any more."""
        with anyio.move_on_after(self._grace):
            await keeper.wait_over()
        began = "its last word" if self._outcome is None else "its function had ended"
        keeper.end_within(0, self._term_grace, f"{self._grace:g} s after {began}")
        await keeper.wait_over()

    def _note(self, found: tuple[Kind, bytes] | None) -> None:
        """Take in what the child says."""
        match found:
            case (Kind.STARTED, body):
                assert self._on_started is not None  # it has been told that there is none
                self._on_started(unpack_value(body, f"what {self._what} started with"))
            case (Kind.ALIVE, _) if self._on_alive is not None:
                self._on_alive()
            case (Kind.RETURNED, body):
                try:
                    value = unpack_value(body, f"what {self._what} returned")
                    self._outcome = Returned(value)
                except NotSendableError as error:
                    self._outcome = Raised(error)
            case (Kind.RAISED, body):
                self._outcome = unpack_exception(body)
            case (Kind.STOPPED, _):
                self._outcome = Stopped()
            case (Kind.JOIN, _) if self._node is not None and self._mesh is not None:
                nodes, mesh = self._boot["nodes"], self._mesh
                assert nodes is not None
                self._mesh = None
                self._node.take_child(mesh, nodes[1], nodes[2])
            case _:
                pass

    def stop_soon(self) -> None:
        """Have it stopped, whatever becomes of the caller: ask, then SIGTERM, then SIGKILL.

        The request reaches an async function as a ``Shutdown`` of ``current_device()``,
        which cancels it, and a plain one as a ``KeyboardInterrupt``. SIGTERM goes to the
        process alone, which it ends unless the function has a handler for it; SIGKILL to
        its group; either is logged. Each thing that the function still prints, logs, or
        raises from its cleanup comes through.
        """
        keeper = self._keeper
        if keeper is None or keeper.over:
            return
        if not self._ready or self._stream is None:
            keeper.kill()  # none of its function's code has run
            return
        asked = self._stream.send_nowait(frame(Kind.STOP))
        late = f"{self._grace:g} s after it was asked to" if asked else "and takes no request to"
        keeper.end_within(self._grace if asked else 0, self._term_grace, late)

    async def stop(self) -> Exit:
        """As ``stop_soon``, and wait for the end. Cancelling this does not undo the stop."""
        self.stop_soon()
        return await self.wait()

    def kill(self) -> None:
        """Send SIGKILL to its group, at once."""
        if self._keeper is not None:
            self._keeper.kill()

    def close(self) -> None:
        """Let go of the process: it is killed, and reaped soon, if it is not ``over``."""
        self._let_go = True
        self.kill()
        if self._keeper is not None and self._keeper.over:
            self._keeper.join()
        if self._stream is not None:
            self._stream.close()
        if self._mesh is not None:
            self._mesh.close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is GeneratorExit:  # nothing can be awaited
            self.close()
            return
        self.stop_soon()
        try:
            await outlast(lambda: self.over, self.wait)
        finally:
            self.close()

    def __del__(self) -> None:
        keeper = getattr(self, "_keeper", None)
        if keeper is None or self._stream is None:
            return
        if not (keeper.over or self._let_go):
            warnings.warn(f"process {self.name!r} was forgotten, and is killed", ResourceWarning, 1)
        keeper.kill()
        self._stream.close()


def check_options(backend: str, output: str, grace: float, term_grace: float) -> None:
    """Raise unless the options of a child process make sense.

    Raises:
        ValueError: They do not.
    """
    if backend not in ("asyncio", "trio"):
        raise ValueError(f"backend must be 'asyncio' or 'trio', not {backend!r}")
    if output not in ("inherit", "log"):
        raise ValueError(f"output must be 'inherit' or 'log', not {output!r}")
    for name, seconds in (("grace", grace), ("term_grace", term_grace)):
        if not seconds >= 0:  # also not a number
            raise ValueError(f"{name} must be 0 or more seconds, not {seconds!r}")
