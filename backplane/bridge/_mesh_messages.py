"""Messages of the mesh on the wire: a request to shut down, and the news of an end."""

from __future__ import annotations

from backplane import Disconnected, Message, Shutdown

from ._errors import FrameError
from ._faults import open_fault, open_id, pack_fault, pack_id
from ._frames import Send
from ._limits import Limits


def pack_message(token: bytes, message: Message, limits: Limits, tracebacks: bool) -> Send:
    """A message to the Device with that token.

    Raises:
        EncodeError: Its sender has an identity that no Device can have.
    """
    sender = None if message.sender is None else pack_id(message.sender)
    if isinstance(message, Shutdown):
        return Send(token, sender)
    return Send(token, sender, True, pack_fault(message.fault, limits, tracebacks))


def open_message(frame: Send) -> Message:
    """The message that was sent.

    Raises:
        FrameError: It is none.
    """
    sender = None if frame.sender is None else open_id(frame.sender)
    fault = open_fault(frame.fault)
    if not frame.ended:
        return Shutdown(sender)
    if sender is None:
        raise FrameError("the end of nobody")
    return Disconnected(sender, fault)
