"""The child process's side: it runs the function, and talks with the parent meanwhile.

An async function runs in the main thread, in a loop, and so does the talk with the parent.
A plain function has the main thread for itself, without any loop (it may run one), and
the talk is in a thread with a loop of its own. In either case a Device manages the work,
and a request to stop is a ``Shutdown`` for it.
"""

from __future__ import annotations

import contextvars
import functools
import logging
import math
import os
import pickle
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, final

import anyio
import sniffio

from backplane import Device, PowerOffCrash
from backplane.lowlevel import (
    Job,
    Parking,
    checkpoint,
    new_parking,
    on_alive,
    outlast,
    start_job,
)

from ._child_control import Conversation, Kind, frame
from ._child_exit import NotSendableError
from ._child_outbox import Outbox
from ._child_output import RecordHandler
from ._child_payload import Boot, is_async, name_of, open_call, pack_exception, pack_value
from ._child_stream import PrivateStream
from ._child_way import Way, ways
from ._errors import FrameError

_PARTING = 2.0
"""Seconds for the last frame, if the function left a loop that cannot send it."""
_NUDGE = 0.1
"""Seconds from one nudge of the main thread to the next, until it has stopped."""
_PAUSE = 0.01
"""Seconds from one report that the work is alive to the next: those between say nothing new.
They are few enough to be no load for the parent, however often the work reports, and a
watchdog that bites so much too early is none the worse."""
_ALIVE = frame(Kind.ALIVE)


def work(
    sock: socket.socket, records: socket.socket, boot: Boot, mesh: list[socket.socket]
) -> None:
    """Do what the parent wants, in the main thread of the child process."""
    with sock:
        if boot["nodes"] is not None:
            ways.append(Way(mesh[0], *boot["nodes"]))
        _adopt_logging(records, boot)
        try:
            fn, args, kwargs = open_call(boot)
            options = pickle.loads(boot["backend_options"])
        except BaseException as error:  # noqa: BLE001 - the parent raises it
            sock.sendall(frame(Kind.RAISED, pack_exception(error)))
            return
        _work(sock, boot, functools.partial(fn, *args, **kwargs), options)


def _work(
    sock: socket.socket, boot: Boot, call: Callable[..., Any], options: dict[str, Any]
) -> None:
    has_loop = is_async(call)
    link = Link(sock, boot, writes=has_loop)
    for way in ways:
        way.ask = functools.partial(link.post, frame(Kind.JOIN))
    sock.sendall(frame(Kind.READY))
    if boot["reports_start"]:
        call = functools.partial(call, task_status=link)
    run = functools.partial(anyio.run, backend=boot["backend"], backend_options=options)
    try:
        if has_loop:
            run(link.serve, call)
        else:
            _work_plainly(link, call, run)
    except SystemExit:
        raise  # an exit code is all there is to tell
    except BaseException as error:  # noqa: BLE001 - the parent tells of it
        link.part(frame(Kind.RAISED, pack_exception(error)))


def _adopt_logging(records: socket.socket, boot: Boot) -> None:
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(line_buffering=True)
    logging.root.addHandler(RecordHandler(records, boot["name"]))
    for name, level in boot["levels"].items():
        logging.getLogger(name or None).setLevel(level)


def _work_plainly(link: Link, call: Callable[[], Any], run: Callable[..., Any]) -> None:
    """Run a plain function in this thread, which is the main one, and ``serve`` in another."""
    plain = PlainWork(call)
    failure: list[BaseException] = []

    def serve() -> None:
        try:
            run(link.serve, plain.attend)
        except BaseException as error:  # noqa: BLE001 - raised in the main thread
            failure.append(error)
        finally:
            plain.contexts.put(None)

    signal.signal(signal.SIGINT, plain.note_interrupt)
    signal.signal(signal.SIGURG, _take_nudge)
    thread = threading.Thread(target=serve, name="backplane.bridge", daemon=True)
    thread.start()
    context = plain.contexts.get()
    if context is not None:
        context.run(plain.work)
    thread.join()
    if isinstance(plain.error, SystemExit):
        raise plain.error
    if failure:
        raise failure[0]


def _take_nudge(number: int, frame: FrameType | None) -> None:
    """Handle a SIGURG: the interpreter has looked for signals, and that is all it is for."""


def _signal_main(*numbers: signal.Signals) -> None:
    """Send the main thread some signals, one a millisecond.

    No Python function is called between them: where CPython 3.11 traces (for a debugger,
    for coverage), no other thread gets past the beginning of one as long as the main
    thread has not seen its signal.
    """
    main = threading.main_thread().ident
    assert main is not None
    for number in numbers:
        signal.pthread_kill(main, number)
        time.sleep(0.001)


class _Unfit(Exception):
    """Stands in the loop for what would end the loop: ``SystemExit``, ``KeyboardInterrupt``."""


@final
class PlainWork:
    """A plain function at work in the main thread, as a coroutine elsewhere sees it."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call = call
        self.contexts: queue.SimpleQueue[contextvars.Context | None] = queue.SimpleQueue()
        """The context to work in, by which ``current_device`` works there."""
        self.error: BaseException | None = None
        self._value: Any = None
        self._interrupted = False
        self._over = False
        self._parking: Parking | None = None

    def work(self) -> None:
        """Run the function; a request to stop is a ``KeyboardInterrupt`` in it.

        That is what stops a program in Python: it ends a ``time.sleep`` or a read, runs
        each ``finally``, ends loops of ``asyncio.run`` and ``trio.run`` in good order, and
        is not caught by ``except Exception``.
        """
        sniffio.current_async_library_cvar.set(None)  # there is no loop in this thread
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            if self._interrupted:
                raise KeyboardInterrupt
            try:
                self._value = self._call()
                if hasattr(self._value, "__await__"):
                    raise TypeError(
                        f"{name_of(self._call)} returned something to be awaited: "
                        "another process runs it in a loop if it is an `async def`"
                    )
            finally:
                signal.signal(signal.SIGINT, signal.SIG_IGN)  # there is nothing left to stop
        except BaseException as error:  # noqa: BLE001 - it goes to the parent
            self.error = error
        self._over = True
        assert self._parking is not None
        self._parking.wake()

    def note_interrupt(self, number: int, frame: FrameType | None) -> None:
        """Handle a SIGINT that comes before the function: keep it for when it begins."""
        self._interrupted = True

    async def attend(self) -> Any:
        """Have the function run; when cancelled, stop it and wait for its end."""
        parking = self._parking = new_parking()
        self.contexts.put(contextvars.copy_context())
        try:
            while not self._over:
                await parking.park()
        except BaseException:
            _signal_main(signal.SIGINT, signal.SIGURG)  # ignored once it is over
            await outlast(lambda: self._over, self._nudge)
            if isinstance(self.error, Exception):
                raise self.error from None
            raise
        if isinstance(self.error, Exception):
            raise self.error
        if self.error is not None:
            raise _Unfit from self.error
        return self._value

    async def _nudge(self) -> None:
        """Wait a while; if it is not over then, have the main thread look for its signal.

        A signal that comes between the interpreter's last look for one and the call by
        which it waits in the system is not seen until that wait is over. Any other signal
        ends the wait. Go's runtime interrupts its threads by SIGURG too: where nobody
        handles it, it does nothing.
        """
        assert self._parking is not None
        with anyio.move_on_after(_NUDGE):
            await self._parking.park()
            return
        _signal_main(signal.SIGURG)


@final
class Link:
    """The child's end of the conversation. It is the work's ``task_status`` too.

    Args:
        sock: The private socket.
        boot: What the parent said.
        writes: Whether a thread with something to say writes it at once, and the loop only
            what finds no room. A plain function's must not: the ``KeyboardInterrupt`` that
            stops it would leave half a frame.
    """

    def __init__(self, sock: socket.socket, boot: Boot, *, writes: bool) -> None:
        self._socket = sock
        self.stream = PrivateStream(sock)
        self._talk = Conversation(self.stream)
        self.device = Device(boot["name"])
        self._outbox = Outbox(sock)
        self._writes = writes
        self._reports_alive = boot["reports_alive"]
        self._next_report = -math.inf
        self._writer: Parking | None = None
        self._main: Parking | None = None
        self._started = False
        sock.setblocking(True)

    def started(self, value: Any = None) -> None:
        """Tell the parent that the work has started. From any thread.

        Raises:
            NotSendableError: The value cannot be sent. Nothing was.
            RuntimeError: It was told already.
        """
        if self._started:
            raise RuntimeError("called 'started' twice on the same task status")
        data = frame(Kind.STARTED, pack_value(value, "what it has started with"))
        self._started = True
        self.post(data)

    def report_alive(self) -> None:
        """Tell the parent that the work is alive. From any thread; it never waits."""
        now = time.monotonic()
        if now >= self._next_report:
            self._next_report = now + _PAUSE
            self._outbox.put_once(_ALIVE)
            self._send()

    def post(self, data: bytes) -> None:
        """Have a frame sent, soon. From any thread."""
        self._outbox.put(data)
        self._send()

    def _send(self) -> None:
        if self._writes:
            self._outbox.push()
        if self._writer is not None:
            self._writer.wake()

    async def serve(self, call: Callable[[], Any]) -> None:
        """Do the work under the Device, and tell the parent what has become of it."""
        self._socket.setblocking(False)
        self._main = new_parking()
        reader = start_job(self._read, self._job_ended, "backplane.bridge reader")
        writer = start_job(self._write, self._job_ended, "backplane.bridge writer")
        if self._reports_alive:
            on_alive.set(self.report_alive)
        last = await self._outcome(call)
        self._next_report = math.inf  # what it has left running does not speak for it
        if last is not None:
            self.post(last)
            # Whoever cancels meanwhile: the parent waits for this, and ends a wait for ever.
            await outlast(lambda: not self._outbox or writer.done, self._main.park)
        for job in (reader, writer):
            job.cancel()
        await outlast(lambda: reader.done and writer.done, self._main.park)

    async def _outcome(self, call: Callable[[], Any]) -> bytes | None:
        """Do the work; return the frame that tells its outcome, or None if an exit does."""
        try:
            value = await self.device.manage(call)
            return frame(Kind.RETURNED, pack_value(value, "what it returned"))
        except PowerOffCrash as crash:
            error = crash.__context__  # what its cleanup raised, if it did
            if not isinstance(error, Exception):
                return frame(Kind.STOPPED)
            return frame(Kind.RAISED, pack_exception(error))
        except _Unfit as unfit:
            cause = unfit.__cause__
            assert cause is not None
            if isinstance(cause, SystemExit):
                return None
            return frame(Kind.RAISED, pack_exception(cause))
        except FrameError as error:
            return frame(
                Kind.RAISED, pack_exception(NotSendableError(f"what it returned: {error}"))
            )
        except Exception as error:  # noqa: BLE001 - the parent raises it
            return frame(Kind.RAISED, pack_exception(error))

    def _job_ended(self, _: Job) -> None:
        assert self._main is not None
        self._main.wake()

    async def _read(self) -> None:
        while await self._talk.receive() is not None:  # after the first, it can only be a stop
            self.device.line().shutdown()
        # The parent has let go of this process, or is dead.
        os.killpg(0, signal.SIGKILL)  # pragma: no cover - whatever is to tell of it dies by it

    async def _write(self) -> None:
        parking = self._writer = new_parking()
        await checkpoint()
        while True:
            while not self._outbox.push():
                await anyio.wait_writable(self._socket)
            assert self._main is not None
            self._main.wake()
            await parking.park()

    def part(self, last: bytes) -> None:
        """Send a last frame when there is no loop any more."""
        self._socket.settimeout(_PARTING)
        self._outbox.put(last)
        self._outbox.push()  # if nobody takes it, the parent sees an exit code
