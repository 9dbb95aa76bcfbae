"""The keeper of a child process: a thread that starts it, attends to it and buries it.

It is a thread of its own, and not a task, for these reasons:

* The child is reaped, and its group killed, whatever becomes of the event loop: the task
  that waits may be cancelled at any ``await``, killed, or its loop may end.
* ``fork`` and ``exec`` take milliseconds, in which no loop should stand still.
* What the child prints and logs goes to the handlers of ``logging``, which may block.
* It works alike under every loop, and uses no signal and no child watcher of theirs.
"""

from __future__ import annotations

import logging
import os
import selectors
import signal
import socket
import subprocess
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, final

import anyio

from backplane.lowlevel import Parking, hold, new_parking, release

from ._child_memory import oom_kills
from ._child_output import RECORD_SOCKET, LineSink, RecordSink, Sink
from ._child_system import interpreter, pidfd, see_group_off, shared, tie
from ._news import logger

_MAIN = str(Path(__file__).with_name("_child_main.py"))

_LOOK = 0.02
"""Seconds between two looks at the child, where the kernel does not tell of its end."""

_LAST_WAIT = 5.0
"""Seconds that a process is waited for after SIGKILL: the kernel may have to end its calls."""

_living: dict[Keeper, None] = {}
"""The keepers whose child is not over: a process that is forked from this one must let go
of what they hold. (Module state, since ``os.register_at_fork`` cannot be undone.)"""


@dataclass(frozen=True, slots=True)
class Status:
    """How the process ended, as the kernel has it."""

    code: int | None
    """Its exit code; None if a signal killed it, or if somebody else has collected it."""
    signal: int | None = None
    out_of_memory: bool = False


@final
class Keeper:
    """Starts one process, in a session and process group of its own, and sees it off.

    What it holds against the child's outliving its parent is the *lifeline*, a pipe whose
    writing end only the parent has: so it breaks when the parent ends, in whatever way. The
    kernel is told to send SIGKILL to the child's whole group then (``F_SETSIG``): that
    reaches a child that is stopped, or that holds its interpreter lock for ever, and its
    own children at the same moment. Where there is no ``F_SETSIG``, a thread in the child
    waits for the same, and kills the group.

    ``PR_SET_PDEATHSIG`` is not used. It belongs to the thread that started the child (which
    here would do, the keeper lives as long), but it kills the child alone; and when it came
    before the lifeline broke, nobody would be left who knows the group.
    """

    def __init__(
        self, name: str, output: Literal["inherit", "log"], mesh: socket.socket | None = None
    ) -> None:
        self.name = name
        self.pid: int | None = None
        self.error: BaseException | None = None
        """Why it could not be started."""
        self.status: Status | None = None
        """How it ended, once ``over``."""
        self.over = False
        self.watched_by_kernel = False
        self._output = output
        self._resources = ExitStack()
        self.socket, self._far = socket.socketpair()
        self._mesh = mesh
        """The child's end of a connection between nodes, if it gets one."""
        self._lifeline = -1
        self._process: subprocess.Popen[bytes] | None = None
        # Re-entrant, since a finalizer may kill, and may run in the middle of any locked block.
        self._lock = threading.RLock()
        self._buried = self._doomed = self._killed = False
        self._told: set[signal.Signals] = set()
        self._ended = threading.Event()
        self._helpers: list[threading.Thread] = []
        self._parkings: dict[Parking, None] = {}
        self._thread = threading.Thread(target=self._run, name=f"{name} (keeper)", daemon=True)

    # -- for the event loop, and for finalizers ----------------------------------

    def start(self) -> None:
        """Begin."""
        _living[self] = None
        hold(self)  # before it can be over
        try:
            self._thread.start()
        except BaseException:
            release(self)
            self._close()
            raise

    async def wait_spawned(self) -> None:
        """Wait until the process runs, or cannot be started, or is over. Loses nothing."""
        await self._wait(lambda: self.pid is not None or self.over)

    async def wait_over(self) -> None:
        """Wait until the process is reaped and its group killed. Loses nothing."""
        await self._wait(lambda: self.over)
        self.join()

    async def wait_killed(self) -> bool:
        """As ``wait_over``, but not for ever; tell whether it is over."""
        with anyio.move_on_after(_LAST_WAIT):
            await self.wait_over()
        return self.over

    def join(self) -> None:
        """Have no thread left of one that is over: it has nothing left to do."""
        self._thread.join()

    async def _wait(self, done: Any) -> None:
        parking = new_parking()
        self._parkings[parking] = None
        try:
            while not done():
                await parking.park()
        finally:
            del self._parkings[parking]

    def end_within(self, grace: float, term_grace: float, late: str) -> None:
        """Send SIGTERM after a grace, and after another SIGKILL to the whole group.

        In a thread of its own, so that it comes about whatever happens to the caller.
        The log is told of each signal once, and ``late``: since when it had its grace.
        """
        with self._lock:
            if not self._ended.is_set():
                thread = threading.Thread(
                    target=self._press,
                    args=(grace, term_grace, late),
                    name=f"{self.name} (stop)",
                    daemon=True,
                )
                thread.start()
                self._helpers.append(thread)

    def _press(self, grace: float, term_grace: float, late: str) -> None:
        if self._ended.wait(_bounded(grace)):
            return
        # The child alone: it may want to stop its own children in order.
        self._tell(signal.SIGTERM, late, lambda: self.signal(signal.SIGTERM))
        if not self._ended.wait(_bounded(term_grace)):
            self._tell(signal.SIGKILL, f"{term_grace:g} s after SIGTERM", self.kill)

    def _tell(self, number: signal.Signals, late: str, send: Callable[[], None]) -> None:
        """Send a signal, and log that; who had it killed before tells of that himself."""
        with self._lock:
            told = number in self._told or self._killed or self._buried or self._has_ended()
            self._told.add(number)
            send()
        if not told:  # after it was sent, and without the lock, for what logs may block
            text = "process %r (pid %d) has not ended %s: %s"
            logger.warning(text, self.name, self.pid, late, number.name)

    def signal(self, number: int) -> None:
        """Send a signal to the process, if it has not been reaped."""
        with self._lock:
            if self.pid is not None and not self._buried:
                with suppress(OSError):
                    os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill the whole group; a process that is about to be started will not live."""
        with self._lock:
            self._doomed = True
            if self.pid is not None and not self._buried:
                self._killed = True
                self._kill_group()

    # -- the thread --------------------------------------------------------------

    def _run(self) -> None:
        memory = oom_kills()
        try:
            sinks = self._spawn()
            self._attend(sinks)
            self._bury(sinks, memory)
        except BaseException as error:  # noqa: BLE001 - it is for who waits
            self.error = error
            if self._process is not None:  # its fault is ours: leave nothing behind
                self._give_up(self._process)
        finally:
            self._close()
            with self._lock:
                self._ended.set()
            for helper in self._helpers:
                helper.join()
            self.over = True
            self._wake()
            release(self)

    def _wake(self) -> None:
        for parking in list(self._parkings):
            parking.wake()

    def _spawn(self) -> list[Sink]:
        own = self._resources
        with ExitStack() as passed:
            lifeline, self._lifeline = os.pipe()
            passed.callback(os.close, lifeline)
            records, their_records = socket.socketpair(type=RECORD_SOCKET)
            own.callback(records.close)
            passed.callback(their_records.close)
            theirs = [self._far.fileno(), lifeline, their_records.fileno()]
            if self._mesh is not None:
                theirs.append(self._mesh.fileno())
                passed.callback(self._mesh.close)
            out, err = (subprocess.PIPE if self._output == "log" else shared(fd) for fd in (1, 2))
            process = self._process = subprocess.Popen(
                [*interpreter(), _MAIN, *map(str, theirs)],
                stdin=subprocess.DEVNULL, stdout=out, stderr=err,
                pass_fds=theirs, start_new_session=True,
            )  # fmt: skip
            self.watched_by_kernel = tie(lifeline, process.pid)
        with self._lock:
            self.pid = process.pid
            if self._doomed:
                self._killed = True
                self._kill_group()
        fields: dict[str, object] = {"child_name": self.name, "child_pid": process.pid}
        sinks: list[Sink] = [RecordSink(records, fields)]
        for stream, pipe in (("stdout", process.stdout), ("stderr", process.stderr)):
            if pipe is not None:
                level = logging.INFO if stream == "stdout" else logging.WARNING
                sinks.append(LineSink(pipe, level, {**fields, "child_stream": stream}))
        for sink in sinks:
            own.callback(sink.close)
        self._wake()
        return sinks

    def _attend(self, sinks: list[Sink]) -> None:
        """Take what the child prints and logs, until it has ended."""
        assert self.pid is not None
        with selectors.PollSelector() as selector, ExitStack() as closing:
            end = pidfd(self.pid)
            if end is not None:
                closing.callback(os.close, end)
                selector.register(end, selectors.EVENT_READ)
            for sink in sinks:
                selector.register(sink, selectors.EVENT_READ, sink)
            while not self._has_ended():
                for key, _ in selector.select(None if end is not None else _LOOK):
                    if key.data is not None and not key.data.drain():
                        selector.unregister(key.fileobj)

    def _has_ended(self) -> bool:
        """Whether the child has ended. It is not reaped: its number stays its own."""
        assert self.pid is not None
        try:
            end = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:  # somebody else has reaped it, or SIGCHLD is ignored
            self.status = Status(None)
            return True
        if end is None:
            return False
        killed = end.si_code in (os.CLD_KILLED, os.CLD_DUMPED)
        self.status = Status(None, end.si_status) if killed else Status(end.si_status)
        return True

    def _bury(self, sinks: list[Sink], memory: int | None) -> None:
        status, process = self.status, self._process
        assert status is not None
        assert process is not None
        with self._lock:
            # Before it is reaped: until then no other group can have this number.
            self._kill_group()
            self._buried = True
            process.wait()
        see_group_off(process.pid)
        for sink in sinks:
            while sink.drain() and _has_more(sink):
                pass
        if status.signal == signal.SIGKILL and not self._killed:
            now = oom_kills()
            grown = memory is not None and now is not None and now > memory
            self.status = Status(None, status.signal, grown)

    def _give_up(self, process: subprocess.Popen[bytes]) -> None:
        self.kill()
        with self._lock:
            self._buried = True
            process.wait()
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
        self.status = Status(None, signal.SIGKILL)

    def _kill_group(self) -> None:
        assert self.pid is not None
        with suppress(OSError):
            os.killpg(self.pid, signal.SIGKILL)

    def _close(self) -> None:
        _living.pop(self, None)
        try:
            # In the child's stead: a process that has left its group may hold a copy.
            with suppress(OSError):
                self._far.shutdown(socket.SHUT_RDWR)
            self._far.close()
            if self._mesh is not None:
                self._mesh.close()
            if self._lifeline >= 0:
                os.close(self._lifeline)
                self._lifeline = -1
        finally:
            self._resources.close()

    def forget(self) -> None:
        """Let go of what only the parent may hold: this is a copy of it, made by fork."""
        self._lock = threading.RLock()  # whoever has held it is not here
        self._buried = True  # the process is not this one's to kill
        for each in (self.socket.fileno(), self._far.fileno(), self._lifeline):
            with suppress(OSError):  # there may be none yet
                os.close(each)
        self._lifeline = -1
        self.socket.detach()
        self._far.detach()


def _has_more(sink: Sink) -> bool:
    with selectors.PollSelector() as selector:
        selector.register(sink, selectors.EVENT_READ)
        return bool(selector.select(0))


def _bounded(seconds: float) -> float:
    return min(max(seconds, 0.0), threading.TIMEOUT_MAX)


def _forget_all() -> None:
    for keeper in list(_living):
        keeper.forget()
    _living.clear()


os.register_at_fork(after_in_child=_forget_all)
