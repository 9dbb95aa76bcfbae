"""What users hold of messages and requests: those that have come, and those under way."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, final, overload

import msgspec

from backplane import Cancelled, DeviceID, Failed, Fault, NoConnection

from ._errors import EndedError, NotConnectedError, RemoteError
from ._exports import Export
from ._frames import Refuse, Reply

if TYPE_CHECKING:
    from ._session import Session

T = TypeVar("T")


@final
class Message:
    """A user's message that has come, closed until it is opened."""

    __slots__ = ("_payload", "_session")

    def __init__(self, session: Session, payload: bytes) -> None:
        self._session = session
        self._payload = payload

    @property
    def node(self) -> str:
        """The name of the node that it is from."""
        return self._session.peer_name

    @property
    def size(self) -> int:
        """Its bytes."""
        return len(self._payload)

    @overload
    def open(self) -> Any: ...
    @overload
    def open(self, as_type: type[T]) -> T: ...
    @overload
    def open(self, as_type: Any) -> Any: ...
    def open(self, as_type: Any = Any) -> Any:
        """What was sent, as a type: anything that msgspec can decode.

        Raises:
            PayloadError: It is nothing of that type.
        """
        return self._session.payloads.open(self._payload, as_type)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.size} bytes from {self.node!r}>"


@final
class Request:
    """A user's request that has come: to be answered once, from whatever thread."""

    __slots__ = ("_payload", "_session", "desk", "export", "over", "ref", "seconds")

    desk: dict[Request, None]
    """Where it lies until it is answered, or nobody waits any longer."""
    export: Export
    over: Callable[[], object] | None
    """Is called if nobody waits for the answer any longer, in the node's loop."""
    ref: int
    """Its number."""
    seconds: float | None
    """For how long the answer was waited for when this came; None: for ever."""

    def __init__(
        self,
        session: Session,
        ref: int,
        export: Export,
        desk: dict[Request, None],
        seconds: float | None,
        payload: bytes,
    ) -> None:
        self._session = session
        self._payload = payload
        self.ref = ref
        self.export = export
        self.desk = desk
        self.seconds = seconds
        self.over = None

    @property
    def device(self) -> DeviceID:
        """The Device that is asked."""
        return self.export.line.id

    @property
    def message(self) -> Message:
        """What was asked, closed."""
        return Message(self._session, self._payload)

    @property
    def node(self) -> str:
        """The name of the node that it is from."""
        return self._session.peer_name

    @overload
    def open(self) -> Any: ...
    @overload
    def open(self, as_type: type[T]) -> T: ...
    @overload
    def open(self, as_type: Any) -> Any: ...
    def open(self, as_type: Any = Any) -> Any:
        """What was asked: see ``Message.open``."""
        return self._session.payloads.open(self._payload, as_type)

    def reply(self, value: Any) -> bool:
        """Answer; False if it was answered already, or nobody waits any longer.

        Raises:
            EncodeError: The value has no form on the wire. It is still unanswered.
        """
        if self not in self.desk:
            return False
        raw = self._session.payloads.pack(value)
        return self._session.calls.answer(self, Reply(self.ref, msgspec.Raw(raw)))

    def fail(self, error: BaseException) -> bool:
        """Have the request fail over there; False as for ``reply``."""
        return self.refuse(False, Failed(error))

    def refuse(self, ended: bool, fault: Fault | None) -> bool:
        """The same, with a fault; ``ended``: since who was asked has ended."""
        wire = self._session.payloads.pack_fault(fault)
        return self._session.calls.answer(self, Refuse(self.ref, ended, wire))

    def __repr__(self) -> str:
        return f"<Request {self.ref} from {self.node!r}>"


@final
class Asked:
    """A request of ours that is under way. ``hear`` is called when it is over."""

    __slots__ = ("_session", "ended", "fault", "hear", "over", "payload", "ref")

    ref: int
    hear: Callable[[], object]
    ended: bool
    """Who was asked has ended."""
    over: bool

    def __init__(self, session: Session, ref: int, hear: Callable[[], object]) -> None:
        self._session = session
        self.ref = ref
        self.hear = hear
        self.over = False
        self.payload: bytes | None = None
        """The answer; None if there is none."""
        self.ended = False
        self.fault: Fault | None = None
        """Why there is no answer."""

    def finish(self, payload: bytes | None, ended: bool, fault: Fault | None) -> None:
        """It is over."""
        self.payload, self.ended, self.fault = payload, ended, fault
        self.over = True
        try:
            self.hear()
        except Exception as error:  # noqa: BLE001 - the user's code must not end the connection
            self._session.conduct.failed(None, error)

    def give_up(self) -> None:
        """Nobody waits for it any longer; the other side is told so."""
        self._session.calls.give_up(self)

    def result(self, as_type: Any = Any) -> Any:
        """The answer, once it is over, or the error that there is none: as ``call``."""
        if self.payload is not None:
            return self._session.payloads.open(self.payload, as_type)
        if self.ended:
            raise EndedError(self.fault)
        if isinstance(self.fault, NoConnection):
            if self._session.is_down:
                raise self._session.gone("wait for the answer")
            raise NotConnectedError(self.fault.node, "wait for the answer")
        raise error_of(self.fault)


def error_of(fault: Fault | None) -> Exception:
    """What a request raises that failed over there."""
    if isinstance(fault, Failed) and isinstance(fault.exception, Exception):
        return fault.exception
    kind = type(Cancelled() if fault is None else fault).__name__
    return RemoteError(f"backplane.{kind}", "")
