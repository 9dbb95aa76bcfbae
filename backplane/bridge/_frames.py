"""What is written on the wire: frames to bytes, and bytes to frames.

A frame is four bytes that say how long it is, most significant first, and then
a MessagePack array: the frame's tag, and its fields. Nothing that comes from a
wire becomes an attribute, a class or code; what users send stays closed until
somebody opens it with a type of his own.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final, TypeAlias, final

import msgspec

from ._errors import EncodeError, FrameError

VERSION = 1
TOKEN = 12
"""Bytes of a token: 96 random bits cannot be guessed."""
NAME = 255
"""Characters of a Device's name, as far as it travels."""


class Wire(msgspec.Struct, array_like=True, forbid_unknown_fields=True, gc=False):
    """What all have in common."""


@final
class WireID(Wire):
    """A ``DeviceID``."""

    serial: int
    realm: int


@final
class WireFault(Wire):
    """A ``Fault``: its first cause, and the Devices that a cascade came through."""

    kind: str
    type_name: str = ""
    text: str = ""
    traceback: str = ""
    node: str = ""
    path: list[WireID] = []


@final
class WireLine(Wire):
    """A Line: where its Device lives, and the token that leads to it there."""

    token: bytes
    node: str
    incarnation: bytes
    id: WireID
    name: str | None
    rights: int


class Frame(Wire):
    """What is sent at once."""


@final
class Hello(Frame, tag=1):
    """Who one is. Both sides say it first."""

    versions: list[int]
    name: str
    incarnation: bytes
    nonce: bytes
    heartbeat: float
    frame: int
    """How large a frame may be that is sent to this side."""
    features: list[str] = []


@final
class Proof(Frame, tag=2):
    """That one knows the secret."""

    mac: bytes


@final
class Ready(Frame, tag=3):
    """The one who has dialled takes the connection into use."""


@final
class Ping(Frame, tag=4):
    """Answer this."""

    number: int


@final
class Pong(Frame, tag=5):
    """An answer."""

    number: int


@final
class Close(Frame, tag=6):
    """Nothing more comes."""

    reason: str


@final
class Find(Frame, tag=7):
    """Ask for what is exported under a name."""

    ref: int
    name: str


@final
class Found(Frame, tag=8):
    """The answer; None if there is nothing."""

    ref: int
    line: WireLine | None


@final
class Watch(Frame, tag=9):
    """Tell when the Device with this token ends."""

    token: bytes


@final
class Unwatch(Frame, tag=10):
    """Nobody wants to know any longer."""

    token: bytes


@final
class Listen(Frame, tag=11):
    """Your Device with this token is linked: it is to hear when mine ends."""

    token: bytes
    line: WireLine


@final
class Unlisten(Frame, tag=12):
    """It is linked no longer."""

    token: bytes
    speaker: bytes


@final
class Fire(Frame, tag=13):
    """My Device with this token has ended; it lived no longer than all that was sent before."""

    token: bytes
    fault: WireFault | None


@final
class Send(Frame, tag=14):
    """A message of the mesh to your Device: a request to shut down, or the news of an end."""

    token: bytes
    sender: WireID | None
    ended: bool = False
    fault: WireFault | None = None


@final
class Tell(Frame, tag=15):
    """A user's message for your Device."""

    token: bytes
    payload: msgspec.Raw


@final
class Call(Frame, tag=16):
    """A user's request to your Device, and for how many seconds its answer is waited for."""

    token: bytes
    ref: int
    seconds: float | None
    payload: msgspec.Raw


@final
class Reply(Frame, tag=17):
    """The answer."""

    ref: int
    payload: msgspec.Raw


@final
class Refuse(Frame, tag=18):
    """There is no answer: the request failed, or its Device has ended (``ended``)."""

    ref: int
    ended: bool
    fault: WireFault | None


@final
class Cancel(Frame, tag=19):
    """Nobody waits for that answer any longer."""

    ref: int


AnyFrame: TypeAlias = (
    Hello | Proof | Ready | Ping | Pong | Close | Find | Found | Watch | Unwatch | Listen
    | Unlisten | Fire | Send | Tell | Call | Reply | Refuse | Cancel
)  # fmt: skip

_decoder = msgspec.msgpack.Decoder(AnyFrame)
_encoder = msgspec.msgpack.Encoder()
_HEAD: Final = struct.Struct(">I")
_TLS: Final = {b"\x16\x03", b"\x15\x03"}
"""How what TLS says first begins: a hello, or that it has understood nothing."""
_HTTP: Final = frozenset(b"GET |HEAD|POST|PUT |OPTI|DELE|PATC|CONN|PRI |HTTP".split(b"|"))
"""How a request begins, or an answer."""


def encode(frame: Frame, limit: int) -> bytes:
    """The bytes of a frame.

    Raises:
        EncodeError: It is larger than the limit.
    """
    body = _encoder.encode(frame)
    length = len(body)
    if length > limit:
        raise EncodeError(f"a message of {length} bytes is too large: the peer takes {limit}")
    return _HEAD.pack(length) + body


@final
class Parser:
    """Makes frames of bytes, however they are split."""

    __slots__ = ("_needed", "_rest", "limit")

    def __init__(self, limit: int) -> None:
        self._rest = bytearray()
        """Of a frame that is not complete yet."""
        self._needed = 0
        """So long must it become, as far as is known."""
        self.limit = limit
        """Bytes that a frame may have. It may be changed between frames."""

    def __len__(self) -> int:
        return len(self._rest)

    def language(self) -> str:
        """What else than frames the peer speaks, if what it has said first shows that."""
        first = bytes(self._rest[: _HEAD.size])
        if first[:2] in _TLS:
            return "it speaks TLS: say tls:// at both ends, or at neither"
        return "it speaks HTTP" if first in _HTTP else ""

    def feed(self, data: bytes | bytearray | memoryview) -> Iterator[AnyFrame]:
        """Take some bytes, and yield each frame that is complete.

        Raises:
            FrameError: The bytes are no frame, or one that is too large. Nothing
                more can be made of what comes after.
        """
        if self._rest:
            self._rest += data
            if len(self._rest) < self._needed:
                return
            data, self._rest = self._rest, bytearray()
        data = bytes(data)
        start, size = 0, len(data)
        try:
            while size - start >= _HEAD.size:
                (length,) = _HEAD.unpack_from(data, start)
                if length > self.limit:
                    raise FrameError(f"a frame of {length} bytes: the limit is {self.limit}")
                end = start + _HEAD.size + length
                if end > size:
                    self._needed = end - start
                    break
                body = data[start + _HEAD.size : end]
                start = end
                try:
                    frame = _decoder.decode(body)
                except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
                    raise FrameError(f"no frame: {error}") from None
                yield frame
            else:
                self._needed = _HEAD.size
        finally:
            self._rest = bytearray(data[start:])
