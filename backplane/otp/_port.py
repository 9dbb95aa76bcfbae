"""What takes what comes from other nodes for a process of this one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, final

from backplane import Failed, Line, LinkMode
from backplane.bridge import (
    EncodeError,
    EndedError,
    Message,
    NotAllowedError,
    NotConnectedError,
    PayloadError,
    RemoteError,
    Request,
    tell,
)

from ._call import deliver, new_request
from ._call_errors import CallTimeoutError, ServerDownError
from ._errors import MailboxFullError
from ._far import FULL, UNTOUCHED, FarProcess
from ._from import From
from ._handles import Pid
from ._mailbox import ALIVE, lock, made
from ._messages import Cast, Method, StopRequest
from ._methods import Shape, find
from ._process import Process
from ._reasons import ExitReason

if TYPE_CHECKING:
    from ._pids import Pids


@final
class ProcessPort:
    """Opens the envelopes for one process, and does what they say."""

    __slots__ = ("__weakref__", "_pids", "_watchers", "address", "process")

    address: bytes
    """What its pid is on the wire."""

    def __init__(self, pids: Pids, process: Process) -> None:
        self._pids = pids
        self.process = process
        self._watchers: dict[str, Line] | None = None
        """The clusters that are told why it ends, by the names of their nodes."""

    def tell(self, message: Message) -> None:
        """For the node: take a message. A wrong one is logged, and harms nobody."""
        try:
            self._take(message.node, message.open(list[Any]))
        except PayloadError as error:
            self._pids.complain(message.node, error, self.process.pid)

    def _take(self, node: str, parts: list[Any]) -> None:
        process = self.process
        match parts:
            case ["m", body]:
                self._post(node, body)
            case ["c", body]:
                self._post(node, Cast(body))
            case ["C", str(name), list(args), dict(kwargs)]:
                self._post(node, Cast(self._method(name, args, kwargs, "cast")))
            case ["x", None, reason] if reason is not None:
                process.signal(None, reason)
            case ["x", Pid() as sender, reason] if lives_on(sender, node) and reason is not None:
                process.signal(sender, reason)
            case ["s", reason] if reason is not None:
                process.deliver_in_any_case(StopRequest(reason))
            case ["d"]:
                process.drain()
            case ["l", Pid() as pid] if lives_on(pid, node):
                if process.reason is ALIVE:
                    made(process, "_links", dict)[pid.id] = pid
            case ["u", Pid() as pid] if lives_on(pid, node):
                (process._links or {}).pop(pid.id, None)
                process.device.unlink(pid.line(), LinkMode.PEER)
            case _:
                raise PayloadError("an envelope of no known kind")

    def _post(self, node: str, message: Any) -> None:
        try:
            self.process.deliver(message)
        except MailboxFullError as error:
            self._pids.complain(node, error)  # its sender has gone on

    def call(self, request: Request) -> None:
        """For the node: take a request."""
        try:
            match request.open(list[Any]):
                case ["k", body]:
                    self._ask(request, body)
                case ["K", str(name), list(args), dict(kwargs)]:
                    self._ask(request, self._method(name, args, kwargs, "call"))
                case ["q", body]:
                    Sending(self.process, request, body).wake()
                case _:
                    raise PayloadError("an envelope of no known kind")
        except PayloadError as error:
            self._pids.complain(request.node, error, self.process.pid)
            request.fail(error)

    def _ask(self, request: Request, message: Any) -> None:
        """Have the process handle a request."""
        answer = Answer(self._pids, request)
        try:
            # It is nobody's of this node: not of the process that the node lives in.
            asked = new_request(self.process, message, request.seconds, None, answer)
            answer.asked = asked
            request.over = asked.abandon
            deliver(asked)
        except ServerDownError:
            request.refuse(True, UNTOUCHED)
            return
        except MailboxFullError as error:
            refuse_full(request, error)
            return

    def _method(self, name: str, args: list[Any], kwargs: dict[Any, Any], kind: str) -> Method:
        calls = self.process.calls
        server: Any = None if calls is None else calls.kind
        method = find(server, name, kind)
        return Method(server, method, *Shape.of(method).arguments(args, kwargs))

    # -- the end -----------------------------------------------------------------------

    def watch(self, node: str, line: Line) -> None:
        """Have the cluster on a node told why the process ends."""
        with lock:
            watchers = self._watchers
            if watchers is None:
                watchers = self._watchers = {}
                self.process.announce(self._announce)
            for name in [name for name, each in watchers.items() if not each.connected]:
                del watchers[name]
            watchers[node] = line
            ended = self.process.reason is not ALIVE
        if ended:
            self._announce(self.process.reason)

    def _announce(self, reason: ExitReason) -> None:
        with lock:
            watchers, self._watchers = self._watchers, None
        words = self._pids.words
        for line in (watchers or {}).values():
            try:
                try:
                    tell(line, ["D", self.address, words.reason(reason)], force=True)
                except EncodeError:  # it is too long for that node
                    tell(line, ["D", self.address, words.outline(reason)], force=True)
            except (EndedError, NotAllowedError, NotConnectedError, ValueError):
                pass  # that the connection is gone is what they hear; a line to here is a lie


def lives_on(pid: Pid, node: str) -> bool:
    """Whether a process is on a certain other node: each speaks for its own only."""
    process = pid._process
    return isinstance(process, FarProcess) and process.node == node


def refuse_full(request: Request, error: MailboxFullError) -> None:
    """Tell that a mailbox is full."""
    request.refuse(False, Failed(RemoteError(FULL, str(error.capacity))))


@final
class Sending:
    """A message that waits for room in a mailbox, which wakes it as it does a ``Parking``."""

    __slots__ = ("_message", "_over", "_process", "_request")

    def __init__(self, process: Process, request: Request, message: Any) -> None:
        self._process = process
        self._request = request
        self._message = message
        self._over = False
        request.over = self._give_up
        made(process, "_room", set).add(self)

    def wake(self) -> None:
        """Look whether there is room."""
        process = self._process
        with lock:
            full = process._capacity is not None and len(process.mailbox) >= process._capacity
            if self._over or (full and process.open):
                return
            self._give_up()
            sent = process.deliver(self._message)
        self._request.reply(sent)

    def _give_up(self) -> None:
        """It is sent, or nobody waits for it any longer."""
        with lock:
            self._over = True
            (self._process._room or set()).discard(self)


@final
class Answer:
    """Brings the answer of a server to the node that has asked: what sleeps there, for it."""

    __slots__ = ("_pids", "_request", "asked")

    asked: From

    def __init__(self, pids: Pids, request: Request) -> None:
        self._pids = pids
        self._request = request

    def wake(self) -> None:
        """The request is over. In whatever thread."""
        request, asked = self._request, self.asked
        error = asked.error
        match error:
            case None:
                try:
                    request.reply(self._pids.words.say(asked.value))
                except EncodeError as refused:
                    request.fail(refused)
            case ServerDownError() if error.target == asked.server.pid:
                # Why it ended, that node is told otherwise: here only whether it had begun.
                request.refuse(True, None if error.begun else UNTOUCHED)
            case MailboxFullError() if error.message is asked:
                refuse_full(request, error)
            case CallTimeoutError() if error.target == asked.server.pid:
                pass  # who asks knows by himself
            case _:  # what the server has answered, though it be such an error of another call
                request.fail(error)
