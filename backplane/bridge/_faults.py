"""Faults on the wire: what is told of them, and what is made of it.

An exception does not travel: its class's name, its text and, if the node
tells of such, its traceback do. Over there it is a ``RemoteError``.
"""

from __future__ import annotations

import traceback
from typing import assert_never

from backplane import (
    Cancelled,
    Cascaded,
    DeviceID,
    Dropped,
    Failed,
    Fault,
    Killed,
    NoConnection,
)

from ._errors import EncodeError, FrameError, RemoteError
from ._frames import NAME, WireFault, WireID
from ._limits import Limits


def _is_possible(serial: int, realm: int) -> bool:
    return 0 < serial < 1 << 63 and 0 <= realm < 1 << 64


def pack_id(id: DeviceID) -> WireID:
    """The identity of a Device, for the wire.

    Raises:
        EncodeError: It was made by hand, and no Device can have it.
    """
    if not _is_possible(id.serial, id.realm):
        raise EncodeError(f"no Device can be {id!r}")
    return WireID(id.serial, id.realm)


def open_id(wire: WireID) -> DeviceID:
    """Which Device is meant."""
    if not _is_possible(wire.serial, wire.realm):
        raise FrameError("a Device with an impossible number")
    return DeviceID(wire.serial, wire.realm)


def pack_text(text: str, limit: int) -> str:
    """As much of a text as may travel; what is no Unicode is told by its number."""
    return text[:limit].encode("utf-8", "backslashreplace").decode()[:limit]


def pack_name(name: str | None) -> str | None:
    """What a Device is called, for the wire."""
    return None if name is None else pack_text(str(name), NAME)


def pack_fault(fault: Fault | None, limits: Limits, tracebacks: bool) -> WireFault | None:
    """A fault, for the wire."""
    if fault is None:
        return None
    path: list[WireID] = []
    if isinstance(fault, Cascaded):
        path = [
            pack_id(sender)
            for sender in fault.path[: limits.path]
            if _is_possible(sender.serial, sender.realm)
        ]
        fault = fault.root
    match fault:
        case Dropped():
            return WireFault("dropped", path=path)
        case Cancelled():
            return WireFault("cancelled", path=path)
        case Killed():
            return WireFault("killed", path=path)
        case NoConnection(node):
            return WireFault("noconnection", node=pack_text(node, NAME), path=path)
        case Failed(error):
            return _pack_error(error, path, limits.text, tracebacks)
        case never:
            assert_never(never)


def _pack_error(
    error: BaseException, path: list[WireID], limit: int, tracebacks: bool
) -> WireFault:
    if isinstance(error, RemoteError):  # it has come from a third node
        name, text, trace = error.type_name, error.text, error.traceback
    else:
        kind = type(error)
        name, text = f"{kind.__module__}.{kind.__qualname__}", text_of(error)
        trace = traceback_of(error) if tracebacks else ""
    trace = pack_text(trace[-16 * limit :], 16 * limit) if tracebacks else ""
    return WireFault("failed", pack_text(name, limit), pack_text(text, limit), trace, path=path)


def text_of(error: BaseException) -> str:
    """What an exception says, whose own ``__str__`` may raise."""
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - it is the user's code, and only its text is wanted
        return "(it cannot be shown)"


def traceback_of(error: BaseException) -> str:
    """A traceback as text."""
    try:
        return "".join(traceback.format_exception(error))
    except Exception:  # noqa: BLE001 - as above
        return ""


def open_fault(wire: WireFault | None) -> Fault | None:
    """The fault that was told of."""
    if wire is None:
        return None
    fault: Fault
    match wire.kind:
        case "dropped":
            fault = Dropped()
        case "cancelled":
            fault = Cancelled()
        case "killed":
            fault = Killed()
        case "noconnection":
            fault = NoConnection(wire.node)
        case "failed":
            fault = Failed(RemoteError.named(wire.type_name, wire.text, wire.traceback))
        case _:
            raise FrameError("an unknown kind of fault")
    for sender in reversed(wire.path):
        fault = Cascaded(open_id(sender), fault)
    return fault
