"""The loop of a server: it takes one message after another, and does what a callback says."""

from __future__ import annotations

import inspect
import logging
from threading import get_ident
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import Any, Final, Literal, final

import anyio

from backplane.lowlevel import checkpoint

from ._brief import brief
from ._call import NOBODY, serving
from ._call_errors import DeadlineError
from ._from import Calls, From
from ._gen_server import HIDDEN, GenServer
from ._handles import Exited
from ._mailbox import BURST, DRAINED
from ._messages import Cast, Method, Refusal, StopRequest
from ._process import Process
from ._reasons import NORMAL, Exit, ExitReason, Stopped, is_good, sole
from ._returns import MARKERS, NOTHING, BadReturnError, NoReply, Reply, ReplyError, Stop
from ._sys import SystemRequest


async def begin(server: GenServer, process: Process, init: Any) -> Loop:
    """Set a server up, in its process; what is left to do is to run the loop."""
    server.process = process
    process.trap_exit = process.trap_exit or server.trap_exit
    process.parent_first = True
    calls = Calls.of(process)
    assert calls is not None  # it is this very process, and lives
    calls.serve(type(server), process.now, get_ident())
    loop = Loop(server, process)
    result = await settle(init())
    if (
        type(result) is Stop and result.reply is NOTHING
    ):  # before it has started: that is a failed start
        raise Exit(result.reason)
    loop.follow("init", result)
    return loop


def note(server: GenServer, way: Literal["in", "out"], message: Any) -> None:
    """Show a message to those that look on."""
    traces = server._otp_traces or ()
    server._otp_traces = [trace for trace in traces if trace.note(way, message)]


async def settle(result: Any) -> Any:
    """What a callback returned, awaited if it is an async one."""
    if type(result) is CoroutineType or hasattr(type(result), "__await__"):
        return await result
    return result


_logger = logging.getLogger("backplane.otp")


@final
class Loop:
    """The life of a server, after ``init``."""

    __slots__ = ("_message", "_next", "_process", "_server", "_stop", "_suspended", "_timeout")

    def __init__(self, server: GenServer, process: Process) -> None:
        self._server = server
        self._process = process
        self._next: Any = NOTHING
        """What to continue with."""
        self._stop: tuple[ExitReason, From | None, Any] | None = None
        self._suspended = False
        self._timeout: float | None = None
        """Seconds of silence that it waits for."""

    async def run(self) -> None:
        """Handle messages until something stops this; then clean up, and end for that reason."""
        self._message: Any = None
        try:
            while self._stop is None:
                try:
                    if self._next is NOTHING and self._is_plain():
                        await self._rush()
                    else:
                        await self._step()
                except BaseException as exc:
                    error = self._meet(exc)
                    if error is exc:
                        raise
                    if error is not None:
                        raise error  # noqa: B904 - it has its cause
        except Exit as wish:
            self._stop = (wish.reason, None, NOTHING)
        except Exception as error:
            await self._report(error, self._message)
            await self._terminate(error)
            raise
        reason, request, reply = self._stop
        if not is_good(reason):
            await self._report(reason, self._message)
        await self._terminate(reason)
        if request is not None and reply is not NOTHING:
            request.reply(reply)
        if reason is not NORMAL:
            raise Exit(reason)

    async def _step(self) -> None:
        if self._next is not NOTHING:
            if await self._is_interrupted():
                return
            argument, self._next = self._next, NOTHING
            self._message = None
            self.follow("handle_continue", await settle(self._server.handle_continue(argument)))
        else:
            self._message = message = await self._take()
            await self._handle(message)

    def _meet(self, exc: BaseException) -> BaseException | None:
        """Something came out of a handler: return what ends the server.

        None if it is about one call alone, and the server goes on.
        """
        request = serving.get()[0]
        serving.set(NOBODY)
        error = sole(self._process.about(exc), (ReplyError, DeadlineError))
        if isinstance(error, Refusal | ReplyError):
            self._refuse(error.error)
            return None
        if isinstance(error, DeadlineError) and request is not None and error.served is request:
            request.expire()  # if its sender's clock has not said so yet
            _logger.info("%r: %s", self._process.pid, error)
            return None
        return error

    def _refuse(self, error: BaseException) -> None:
        """Answer what is none of this server's requests, and go on."""
        if type(self._message) is From:
            self._message.fail(error)
        else:
            _logger.warning("%r: %s", self._process.pid, brief(error))

    async def _is_interrupted(self) -> bool:
        """Between two continuations: handle what must not wait for their end."""
        process = self._process
        process._burst += 1
        if process._burst > BURST:
            process._burst = 0
            await checkpoint()
        if process._urgent or process._killed or process._fatal is not None:
            self._message = message = await self._take()
            await self._handle(message)
            return True
        return False

    def _is_plain(self) -> bool:
        """Whether nothing but messages has to be looked at."""
        process, server = self._process, self._server
        return (
            self._timeout is None
            and not self._suspended
            and process._capacity is None
            and server._otp_statistics is None
            and not server._otp_traces
        )

    async def _rush(self) -> None:
        """Take messages as they come, as long as they are calls and casts and say nothing else.

        This is ``_take`` and ``_handle`` for the case that counts: it leaves all
        that is rare to them.
        """
        process, server = self._process, self._server
        mailbox, now = process.mailbox, process.now
        parking = process._parking
        assert parking is not None
        left = BURST
        while not (process._urgent or process._killed or process._fatal is not None):
            process._news = False
            if not mailbox:
                left = BURST
                self._message = message = None
                # As `_park`, without a coroutine more.
                if process._waiting:
                    raise anyio.BusyResourceError("receiving from")
                process._waiting = True
                try:
                    if not process._news:
                        await parking.rest()
                finally:
                    process._waiting = False
                continue
            left -= 1
            if not left:
                left = BURST
                await checkpoint()
                continue
            self._message = message = mailbox.popleft()
            kind = type(message)
            if kind is From:
                if message.over:
                    continue
                deadline = message.deadline
                if (
                    message.seconds is not None
                    and (deadline is None or deadline <= now())
                    and message.is_late(now)
                ):
                    continue
                message.begun = True
                serving.set(box := [message])
                asked = message.message
                if type(asked) is Method:
                    result = asked.run(server)
                else:
                    result = server.handle_call(asked, message)
                kind = type(result)
                if kind not in _PLAIN:
                    if kind is CoroutineType or hasattr(kind, "__await__"):
                        result = await result
                        kind = type(result)
                    if kind in _SPECIAL:
                        serving.set(NOBODY)
                        self._answer_as(message, result)
                        return
                box[0] = None  # cheaper than to set it anew
                message.answer(result)
            elif kind is Cast:
                asked = message.message
                result = asked.run(server) if type(asked) is Method else server.handle_cast(asked)
                if result is not None:
                    if type(result) is CoroutineType or hasattr(type(result), "__await__"):
                        result = await result
                    if result is not None:
                        self.follow(_name_of(asked), result)
                        return
            else:
                if message is DRAINED:
                    mailbox.appendleft(message)  # where others find it, and all of it is left
                await self._handle(message)
                return
        if process._urgent:
            self._message = message = await self._take()
            await self._handle(message)
        else:
            await process._meet_end()

    async def _take(self) -> Any:
        """Wait for what comes next, but for requests that nobody waits for any longer."""
        process = self._process
        timeout = self._timeout
        deadline = None if timeout is None else process.now() + timeout
        while True:
            process._burst += 1
            if process._burst > BURST:
                process._burst = 0
                await checkpoint()
            if process._killed or process._fatal is not None:
                await process._meet_end()
            process._news = False
            if process._urgent:
                message = process._urgent.popleft()
                return StopRequest(message.reason) if type(message) is Exited else message
            if self._suspended:
                found, message = _stop_in(process)
            else:
                found, message = process._look(None, 0, len(process.mailbox))
            if found:
                if type(message) is From and (message.over or message.is_late(process.now)):
                    continue
                return message
            if deadline is not None and not self._suspended and process.now() >= deadline:
                self._timeout = None
                return TIMEOUT
            await process._park(None if self._suspended else deadline)

    async def _handle(self, message: Any) -> None:
        server = self._server
        kind = type(message)
        if kind is SystemRequest:
            self._suspended = await message.serve(server, self._suspended)
            return  # it leaves a timeout in force, which starts anew
        if server._otp_statistics is not None:
            server._otp_statistics.messages_in += 1
        self._timeout = None
        if server._otp_traces:
            note(server, "in", message)
        if kind is From:
            await self._answer(message)
            return
        if kind is Cast:
            asked = message.message
            name = _name_of(asked)
            result = asked.run(server) if type(asked) is Method else server.handle_cast(asked)
        elif message is TIMEOUT:
            result, name = server.handle_timeout(), "handle_timeout"
        elif message is DRAINED:
            if not self._process.passes_drained(0):
                self._stop = (Stopped("drained"), None, NOTHING)
            return
        elif kind is StopRequest:
            self._stop = (message.reason, None, NOTHING)
            return
        else:
            result, name = server.handle_info(message), "handle_info"
        if result is not None:
            self.follow(name, await settle(result))

    async def _answer(self, request: From) -> None:
        server, asked = self._server, request.message
        request.begun = True
        serving.set([request])
        result = asked.run(server) if type(asked) is Method else server.handle_call(asked, request)
        result = await settle(result)
        serving.set(NOBODY)
        self._answer_as(request, result)

    def _answer_as(self, request: From, result: Any) -> None:
        kind = type(result)
        if kind is Stop:
            self._stop = (result.reason, request, result.reply)
            return
        if kind is Reply:
            request.reply(result.value)
            self._timeout, self._next = result.timeout, result.then
        elif kind is NoReply:
            self._timeout, self._next = result.timeout, result.then
        elif kind in _SPECIAL and _is_mistaken(self._server, request.message, result):
            raise BadReturnError(_name_of(request.message, "handle_call"), result)
        else:
            request.reply(result)

    def follow(self, name: str, result: Any) -> None:
        """Do what a callback that answers nobody has returned."""
        kind = type(result)
        if kind is NoReply:
            self._timeout, self._next = result.timeout, result.then
        elif kind is Stop and result.reply is NOTHING:
            self._stop = (result.reason, None, NOTHING)
        elif result is not None:
            raise BadReturnError(name, result)

    async def _terminate(self, reason: ExitReason) -> None:
        await settle(self._server.terminate(reason))

    async def _report(self, reason: ExitReason, message: Any) -> None:
        try:
            status = await show(self._server, message, reason)
        except Exception:
            _logger.exception("format_status of %r failed", self._process.pid)
            status = {"state": HIDDEN, "message": HIDDEN, "reason": reason}
        _logger.error(
            "server %r ended: %s\nlast message: %s\nstate: %s",
            self._process.pid,
            *(brief(status.get(each)) for each in ("reason", "message", "state")),
            exc_info=reason if isinstance(reason, BaseException) else None,
        )


@final
class _Timeout:
    def __repr__(self) -> str:
        return "TIMEOUT"


TIMEOUT: Final = _Timeout()


_SPECIAL: Final = MARKERS | {type, GeneratorType, AsyncGeneratorType}
"""The types of answers that may mean something else than themselves."""


_PLAIN: Final = frozenset({type(None), bool, int, float, str, bytes, list, tuple, dict, set})
"""Types of answers that are nothing but answers."""


def _is_mistaken(server: GenServer, asked: Any, result: Any) -> bool:
    """Whether what a handler returned shows that it was written wrongly."""
    if isinstance(result, type):
        return result in MARKERS
    method = getattr(server, asked.fn.__name__) if type(asked) is Method else server.handle_call
    code = result.gi_code if isinstance(result, GeneratorType) else result.ag_code
    return getattr(inspect.unwrap(method), "__code__", None) is code


def _stop_in(process: Process) -> tuple[bool, Any]:
    """The first request to stop among messages that are left where they are."""
    for message in list(process.mailbox):
        if type(message) is StopRequest:
            return True, message
    return False, None


async def show(server: GenServer, message: Any, reason: ExitReason) -> dict[str, Any]:
    """What ``format_status`` makes of a server's status."""
    log = [entry for trace in server._otp_traces or () for entry in trace.log]
    status = {"state": server.get_state(), "message": message, "reason": reason, "log": log}
    shown = await settle(server.format_status(status))
    if not isinstance(shown, dict):
        raise BadReturnError("format_status", shown)
    return shown


def _name_of(asked: Any, callback: str = "handle_cast") -> str:
    return str(asked.fn.__name__) if type(asked) is Method else callback
