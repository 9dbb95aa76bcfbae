"""What users send: closed until it is opened as a type, with Lines inside."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, Protocol, TypeAlias, TypeVar, final

import msgspec

from backplane import Device, DeviceID, Line

from ._errors import EncodeError, FrameError, PayloadError
from ._faults import open_id, pack_id
from ._frames import WireID, WireLine

T = TypeVar("T")

LINE = 1
"""The MessagePack extension of a Line."""
ID = 2
"""And of a DeviceID."""

_MOST_DEPTH = "nested too deeply"
_KEPT = 256
"""Decoders: one for each type that messages are opened as."""

Writer: TypeAlias = Callable[[Any], bytes]
"""Makes bytes of a message, or raises ``EncodeError``."""
Reader: TypeAlias = Callable[[bytes, Any], Any]
"""Opens a message as a type, or raises ``PayloadError``."""


class Codec(Protocol):
    """What turns users' messages into bytes and back. The one given speaks MessagePack."""

    def encode(self, value: Any, pack_line: Callable[[Line], bytes]) -> bytes:
        """The bytes of a message; ``pack_line`` makes those of a Line in it.

        It must raise ``EncodeError`` for what has no form. The bytes must be one
        MessagePack value, for which binary data can serve.
        """

    def decode(self, data: bytes, as_type: Any, open_line: Callable[[bytes], Line]) -> Any:
        """The message of some bytes, or ``PayloadError``."""


@final
class Msgspec:
    """MessagePack by msgspec: whatever msgspec knows, Lines, and what is added to it.

    Structs and dataclasses travel without their names; who receives them says
    what they are. Nothing is ever imported or called because a message says so.
    """

    def __init__(self) -> None:
        self._packers: list[tuple[type, int, Callable[[Any], bytes]]] = []
        self._openers: dict[int, Callable[[bytes], Any]] = {}

    def add(
        self, kind: type[T], code: int, pack: Callable[[T], bytes], open: Callable[[bytes], T]
    ) -> None:
        """Have another class travel, as the MessagePack extension with a number from 16 to 127."""
        if not 16 <= code <= 127 or code in self._openers:
            raise ValueError(f"extension {code} is taken, or not between 16 and 127")
        self._packers.append((kind, code, pack))
        self._openers[code] = open

    def encode(self, value: Any, pack_line: Callable[[Line], bytes]) -> bytes:
        """The bytes of a message."""
        return self.writer(pack_line)(value)

    def decode(self, data: bytes, as_type: Any, open_line: Callable[[bytes], Line]) -> Any:
        """The message of some bytes, as a type."""
        return self.reader(open_line)(data, as_type)

    def writer(self, pack_line: Callable[[Line], bytes]) -> Writer:
        """The same as ``encode``, for many messages."""

        def hook(thing: Any) -> Any:
            if isinstance(thing, Line):
                return msgspec.msgpack.Ext(LINE, pack_line(thing))
            if isinstance(thing, DeviceID):
                return msgspec.msgpack.Ext(ID, msgspec.msgpack.encode(pack_id(thing)))
            for kind, code, pack in self._packers:
                if isinstance(thing, kind):
                    return msgspec.msgpack.Ext(code, pack(thing))
            advice = "send what msgspec knows, or give the node a codec that knows it"
            if isinstance(thing, Device):
                advice = "send a Line to it, device.line()"
            raise EncodeError(f"{type(thing).__qualname__} has no form on the wire: {advice}")

        encode = msgspec.msgpack.Encoder(enc_hook=hook).encode

        def write(value: Any) -> bytes:
            try:
                return encode(value)
            except (EncodeError, FrameError):
                raise
            except RecursionError:
                raise EncodeError(f"a message is {_MOST_DEPTH}") from None
            except Exception as error:
                raise EncodeError(f"a message cannot be encoded: {error}") from error

        return write

    def reader(self, open_line: Callable[[bytes], Line]) -> Reader:
        """The same as ``decode``, for many messages."""

        def ext_hook(code: int, body: memoryview) -> Any:
            if code == LINE:
                return open_line(bytes(body))
            if code == ID:
                return open_id(msgspec.msgpack.decode(body, type=WireID))
            opener = self._openers.get(code)
            if opener is None:
                raise ValueError(f"extension {code} is not known here")
            return opener(bytes(body))

        made: dict[Any, Callable[[bytes], Any]] = {}

        def make(as_type: Any) -> Callable[[bytes], Any]:
            decoder = msgspec.msgpack.Decoder(as_type, ext_hook=ext_hook, dec_hook=_as_it_is)
            if len(made) >= _KEPT:
                made.clear()
            with contextlib.suppress(TypeError):  # not all types can be kept
                made[as_type] = decoder.decode
            return decoder.decode

        def read(data: bytes, as_type: Any) -> Any:
            try:
                try:
                    decode = made[as_type]
                except (KeyError, TypeError):
                    decode = make(as_type)
                return decode(data)
            except RecursionError:
                raise PayloadError(f"a message is {_MOST_DEPTH}") from None
            except Exception as error:
                name = getattr(as_type, "__qualname__", repr(as_type))
                raise PayloadError(f"a message is no {name}: {error}") from error

        return read


def _as_it_is(kind: type, thing: Any) -> Any:
    """For msgspec: what the codec has opened already."""
    if isinstance(thing, kind):
        return thing
    raise TypeError(f"a {kind.__qualname__} was expected, not a {type(thing).__qualname__}")


def writer(codec: Codec, pack_line: Callable[[Line], bytes]) -> Writer:
    """What makes bytes of messages, many times."""
    if isinstance(codec, Msgspec):
        return codec.writer(pack_line)
    return lambda value: codec.encode(value, pack_line)


def reader(codec: Codec, open_line: Callable[[bytes], Line]) -> Reader:
    """What opens messages, many times."""
    if isinstance(codec, Msgspec):
        return codec.reader(open_line)
    return lambda data, as_type: codec.decode(data, as_type, open_line)


def pack_wire_line(line: WireLine) -> bytes:
    """The bytes of a Line."""
    return msgspec.msgpack.encode(line)


def open_wire_line(data: bytes) -> WireLine:
    """The Line of some bytes."""
    try:
        return msgspec.msgpack.decode(data, type=WireLine)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise PayloadError(f"no Line: {error}") from None
