"""What is raised by the bridge."""

from __future__ import annotations

from typing import Any, ClassVar, Final

from backplane import DeviceID, Fault, LinkError


class BridgeError(Exception):
    """Something that the bridge was asked for cannot be."""


class FrameError(BridgeError):
    """What a peer has sent is no frame, is too large, or has no place here."""


class AuthError(BridgeError):
    """A peer could not prove that it knows the secret, or is not who was expected."""


class VersionError(BridgeError):
    """A peer speaks no version of the protocol that this node speaks.

    Or its heartbeat is too slow for this node's ``dead_after``.
    """


class AddressError(BridgeError, ValueError):
    """An address is none, or is not safe to use like that; the text says what to do."""


class EncodeError(BridgeError, TypeError):
    """A message cannot be sent: it holds what has no form on the wire, or is too large.

    Nothing was sent.
    """


class PayloadError(BridgeError, TypeError):
    """A message that came does not have the type that it was to be opened as."""


class NotConnectedError(BridgeError):
    """There is no connection to that node. A call may have had its effect if it had been sent."""

    def __init__(self, node: str, attempt: str = "", why: str = "") -> None:
        super().__init__(node, attempt, why)
        self.node = node
        """Its name, or its address if that is all that is known."""
        self.attempt = attempt
        """What was to be done."""
        self.why = why
        """What came in the way, if that is known."""

    def __str__(self) -> str:
        why = self.why or f"node {self.node!r} is not connected, or no longer"
        return f"cannot {self.attempt}: {why}" if self.attempt else why


class ProofRefusedError(NotConnectedError):
    """A node has hung up at this node's proof, as one does whose secret is another.

    It does not say so, for it does not know who is there.
    """


class RefusedError(NotConnectedError):
    """One of two nodes that have met does not want the connection, though nobody lies."""

    code: ClassVar[str]
    """What is said of it to the other one."""


class DuplicateError(RefusedError):
    """There is a connection with that node already."""

    code = "duplicate"


class NameTakenError(RefusedError):
    """Another node of the same name is connected, and lives: each needs a name of its own."""

    code = "taken"


class PerhapsTakenError(NameTakenError):
    """The same, as far as is known: it has been asked for a sign of life."""

    code = "perhaps"


class FullError(RefusedError):
    """A node has as many connections as its ``Limits(sessions=...)`` allow."""

    code = "full"


class BusyError(BridgeError):
    """So much waits to be written to the peer that nothing more is taken.

    The peer is slow, or the network; or much was sent at once, and this node's loop
    had no turn since.
    """

    def __init__(self, node: str, waiting: int, limit: str = "Limits(outbox=...)") -> None:
        super().__init__(node, waiting, limit)
        self.node = node
        self.waiting = waiting
        """Bytes."""
        self.limit = limit
        """Which of this node's limits that is beyond."""

    def __str__(self) -> str:
        return (
            f"{self.waiting} bytes wait to be written to node {self.node!r}, more than {self.limit}"
        )


class ExportError(BridgeError, LookupError):
    """A node exports nothing under that name, or not to this one: it does not say which."""

    def __init__(self, node: str, name: str) -> None:
        super().__init__(node, name)
        self.node = node
        self.name = name

    def __str__(self) -> str:
        return (
            f"node {self.node!r} exports nothing as {self.name!r}, or not to this node: "
            "export it there, and look at its allow list"
        )


class NotAllowedError(BridgeError, LinkError):
    """The Line gives no right to that: its Device was exported without.

    Nothing was done: nothing was sent or linked, and the Line is as good as before.
    """

    def __init__(
        self, device: DeviceID, attempt: str, node: str, right: str, advice: str = ""
    ) -> None:
        super().__init__(device, attempt)
        self.node = node
        """Where the Device is."""
        self.right = right
        """What it would take."""
        self.advice = advice
        """What to do."""

    def __reduce__(self) -> tuple[Any, ...]:
        fields = self.device, self.attempt, self.node, self.right, self.advice
        return NotAllowedError, fields

    def __str__(self) -> str:
        advice = f": {self.advice}" if self.advice else ""
        return (
            f"cannot {self.attempt}: {self.device!r} of node {self.node!r} is exported "
            f"without {self.right}{advice}"
        )


class EndedError(BridgeError):
    """A Device on another node has ended, without an answer; ``fault`` says why."""

    def __init__(self, fault: Fault | None) -> None:
        super().__init__(fault)
        self.fault = fault

    def __str__(self) -> str:
        revoked = isinstance(getattr(self.fault, "exception", None), GoneError | NobodyError)
        return f"the Device has ended{', or was revoked' if revoked else ''}: {self.fault!r}"


class RemoteError(Exception):
    """Stands for an exception that was raised in another interpreter."""

    def __init__(self, type_name: str, text: str, traceback: str = "") -> None:
        super().__init__(type_name, text)  # what ``repr`` shows, in a line of a log
        self.type_name = type_name
        """The class of the exception, with its module."""
        self.text = text
        """What ``str`` made of it there."""
        self.traceback = traceback
        """Its traceback, if that node tells of such; else empty."""
        if traceback:
            self.add_note(f"The traceback over there:\n{traceback}")

    @classmethod
    def named(cls, type_name: str, text: str, traceback: str = "") -> RemoteError:
        """The exception of that name: one of a class of its own, if it stands for one of these."""
        kind = _OF_NODES.get(type_name)
        return cls(type_name, text, traceback) if kind is None else kind(text, traceback)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.named, (self.type_name, self.text, self.traceback)

    def __str__(self) -> str:
        return f"{self.type_name}: {self.text}" if self.text else self.type_name


class GoneError(RemoteError):
    """In a fault: the Device had ended before its node was asked, and nobody knows why any longer.

    Or there never was one; or there is, and its node was told to ``revoke`` it.
    """

    def __init__(self, text: str, traceback: str = "") -> None:
        super().__init__("backplane.bridge.GoneError", text, traceback)


class NobodyError(RemoteError):
    """Nobody takes requests there: the Device has no port, or there is no such Device."""

    def __init__(self, text: str, traceback: str = "") -> None:
        super().__init__("backplane.bridge.NobodyError", text, traceback)


_OF_NODES: Final[dict[str, type[GoneError | NobodyError]]] = {
    "backplane.bridge.GoneError": GoneError,
    "backplane.bridge.NobodyError": NobodyError,
}
"""What a node says itself, by the names that it has on the wire."""


_KINDS = DuplicateError, NameTakenError, PerhapsTakenError, FullError
REFUSALS: Final = {kind.code: kind for kind in _KINDS}

for _error in (
    AddressError, AuthError, BridgeError, BusyError, DuplicateError, EncodeError, EndedError,
    ExportError, FrameError, FullError, GoneError, NameTakenError, NobodyError, NotAllowedError,
    NotConnectedError, PayloadError, PerhapsTakenError, ProofRefusedError, RefusedError,
    RemoteError, VersionError,
):  # fmt: skip
    _error.__module__ = "backplane.bridge"
