"""Links, messages and calls between nodes and operating-system processes.

A ``Node`` is this interpreter among others. It dials, listens if it is told to,
and exports Devices under names; with ``peer.find(name)`` another node has a Line
to one. That is a Line like any other: it can be linked, sent to, watched and
managed under. When the Device ends, those linked hear with which fault; when
the connection is lost, they hear ``NoConnection``.

``in_process`` makes of a function a child that does its work in an operating-system
process of its own: what kills that is an error here, like any other.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from ._child_exit import NotSendableError, ProcessExitedError, ProcessKilledError
from ._errors import (
    AddressError,
    AuthError,
    BridgeError,
    BusyError,
    DuplicateError,
    EncodeError,
    EndedError,
    ExportError,
    FrameError,
    FullError,
    GoneError,
    NameTakenError,
    NobodyError,
    NotAllowedError,
    NotConnectedError,
    PayloadError,
    ProofRefusedError,
    RefusedError,
    RemoteError,
    VersionError,
)

if TYPE_CHECKING:
    from ._codec import Codec, Msgspec
    from ._exports import Port, Right
    from ._in_process import in_process
    from ._limits import Limits
    from ._node import Node, Peer
    from ._parent_node import parent_node
    from ._requests import Asked, Message, Request
    from ._secrets import Secret, Secrets, from_passphrase
    from ._status import NodeDown, NodeEvent, NodeStats, NodeUp, PeerStats, Retry
    from ._talk import ask, call, tell, wait_tell
    from ._tls import TLS
else:
    # Imported when they are asked for: a child process needs few of them, or none, and would
    # spend the most of its start on them.
    _HOMES = {
        "_codec": ("Codec", "Msgspec"),
        "_exports": ("Port", "Right"),
        "_in_process": ("in_process",),
        "_limits": ("Limits",),
        "_node": ("Node", "Peer"),
        "_parent_node": ("parent_node",),
        "_requests": ("Asked", "Message", "Request"),
        "_secrets": ("Secret", "Secrets", "from_passphrase"),
        "_status": ("NodeDown", "NodeEvent", "NodeStats", "NodeUp", "PeerStats", "Retry"),
        "_talk": ("ask", "call", "tell", "wait_tell"),
        "_tls": ("TLS",),
    }

    def __getattr__(name: str) -> object:
        for home, names in _HOMES.items():
            if name in names:
                found = globals()[name] = getattr(import_module(f"{__name__}.{home}"), name)
                return found
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "TLS",
    "AddressError",
    "Asked",
    "AuthError",
    "BridgeError",
    "BusyError",
    "Codec",
    "DuplicateError",
    "EncodeError",
    "EndedError",
    "ExportError",
    "FrameError",
    "FullError",
    "GoneError",
    "Limits",
    "Message",
    "Msgspec",
    "NameTakenError",
    "NobodyError",
    "Node",
    "NodeDown",
    "NodeEvent",
    "NodeStats",
    "NodeUp",
    "NotAllowedError",
    "NotConnectedError",
    "NotSendableError",
    "PayloadError",
    "Peer",
    "PeerStats",
    "Port",
    "ProcessExitedError",
    "ProcessKilledError",
    "ProofRefusedError",
    "RefusedError",
    "RemoteError",
    "Request",
    "Retry",
    "Right",
    "Secret",
    "Secrets",
    "VersionError",
    "ask",
    "call",
    "from_passphrase",
    "in_process",
    "parent_node",
    "tell",
    "wait_tell",
]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
