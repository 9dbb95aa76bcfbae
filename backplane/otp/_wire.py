"""What of processes travels between nodes, and how: pids, reasons, and the user's messages.

Nothing is imported or called because a message says so: a class travels by its
name only if both sides were told of it.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Iterable
from typing import Any, Final, final

import msgspec

from backplane.bridge import EncodeError, Msgspec, Node, PayloadError, RemoteError

from ._brief import brief
from ._handles import Pid
from ._reasons import Exit, Reason, Stopped

PID: Final = 16
VALUE: Final = 17
REASON: Final = 18
STOPPED: Final = 19
ERROR: Final = 20
EXIT: Final = 21
"""The MessagePack extensions of a cluster."""

_PLAIN: Final = frozenset({int, str, bytes, float, bool, type(None)})
_TEXT: Final = 4096
"""So many characters of an exception's text travel."""


@final
class Words:
    """Teaches a node's codec what processes send."""

    def __init__(
        self,
        node: Node,
        types: Iterable[type],
        pack_pid: Callable[[Pid], bytes],
        open_pid: Callable[[bytes], Pid],
    ) -> None:
        codec = node.codec
        if not isinstance(codec, Msgspec):
            raise TypeError("a cluster needs a node with the codec Msgspec()")
        self._node = node
        self._types: dict[str, type] = {}
        for kind in types:
            self._add_type(kind)
        try:
            codec.add(Pid, PID, pack_pid, open_pid)
        except ValueError as error:
            raise ValueError(f"node {node.name!r} has, or had, a cluster: {error}") from None
        codec.add(Exception, ERROR, self._pack_error, self._open_error)
        codec.add(_Named, VALUE, lambda it: node.encode(it.parts), self._open_value)
        codec.add(_OfReason, REASON, lambda it: it.reason.value.encode(), _open_reason)
        codec.add(_OfStopped, STOPPED, lambda it: node.encode(it.detail), self._open_stopped)
        codec.add(_OfExit, EXIT, lambda it: node.encode(it.reason), self._open_exit)

    def _add_type(self, kind: type) -> None:
        if not isinstance(kind, type) or not (
            dataclasses.is_dataclass(kind) or issubclass(kind, msgspec.Struct | enum.Enum)
        ):
            raise TypeError(
                f"{kind!r} cannot travel by name: it is no dataclass, msgspec.Struct or Enum"
            )
        name = kind.__qualname__
        if self._types.get(name, kind) is not kind:
            raise ValueError(f"two types are called {name!r}: both sides tell them by that")
        self._types[name] = kind

    # -- what is sent ----------------------------------------------------------------------

    def say(self, value: Any) -> Any:
        """A message in a form that keeps the types it is made of, where both sides know them.

        Raises:
            EncodeError: It is nested too deeply, perhaps in itself.
        """
        try:
            return self._say(value)
        except RecursionError:
            raise EncodeError("a message is nested too deeply") from None

    def _say(self, value: Any) -> Any:
        kind = type(value)
        if kind in _PLAIN:
            return value
        # Most of what there is is plain: it needs no call of its own.
        if kind is list or kind is tuple:
            return [each if type(each) in _PLAIN else self._say(each) for each in value]
        if kind is dict:
            return {
                key if type(key) is str else self._say_key(key): each
                if type(each) in _PLAIN
                else self._say(each)
                for key, each in value.items()
            }
        if kind is Reason:
            return _OfReason(value)
        if kind is Stopped:
            return _OfStopped(self._say(value.detail))
        if kind is Exit:
            return _OfExit(self._say(value.reason))
        if self._types.get(kind.__qualname__) is kind:
            return _Named([kind.__qualname__, self._say_fields(kind, value)])
        return value

    def _say_key(self, key: Any) -> Any:
        """The same of a dict's key, which must stay one."""
        return tuple(map(self._say_key, key)) if type(key) is tuple else self._say(key)

    def _say_fields(self, kind: Any, value: Any) -> Any:
        if issubclass(kind, enum.Enum):
            return value.value if issubclass(kind, enum.Flag) else value.name
        if not issubclass(kind, msgspec.Struct):
            names = [field.name for field in dataclasses.fields(kind)]
            return {name: self._say(getattr(value, name)) for name in names}
        fields = [self._say(getattr(value, name)) for name in kind.__struct_fields__]
        config = kind.__struct_config__
        if config.array_like:
            return [config.tag, *fields] if config.tag is not None else fields
        return dict(zip(kind.__struct_encode_fields__, fields, strict=True))

    def reason(self, reason: Any) -> Any:
        """A reason as it can travel: of one that cannot, its text does."""
        try:
            said = self.say(reason)
            self._node.encode(said)
        except EncodeError:
            return self.outline(reason)
        return said

    def outline(self, reason: Any) -> Any:
        """The text of a reason, as one; a good end stays one."""
        if isinstance(reason, Stopped):
            return _OfStopped(_clean(brief(reason.detail)))
        return RemoteError(_name_of(reason), _clean(brief(reason)))

    def _pack_error(self, error: Exception) -> bytes:
        if isinstance(error, RemoteError):
            return self._node.encode([error.type_name, error.text, error.traceback])
        try:
            text = str(error)
        except Exception:  # noqa: BLE001 - it is the user's code
            text = "(it cannot be shown)"
        return self._node.encode([_name_of(error), _clean(text), ""])

    # -- what comes ------------------------------------------------------------------------

    def _open_value(self, data: bytes) -> Any:
        name, fields = self._node.decode(data, tuple[str, Any])
        kind = self._types.get(name)
        if kind is None:
            raise PayloadError(f"a {name[:100]!r}, which the cluster here was not told of: types=")
        if issubclass(kind, enum.Enum):
            return kind(fields) if issubclass(kind, enum.Flag) else kind[fields]
        return msgspec.convert(fields, kind, dec_hook=as_it_is)

    def _open_stopped(self, data: bytes) -> Any:
        return Stopped(self._node.decode(data))

    def _open_exit(self, data: bytes) -> Any:
        return Exit(self._node.decode(data))

    def _open_error(self, data: bytes) -> Exception:
        return RemoteError(*self._node.decode(data, tuple[str, str, str]))


class _Named:
    def __init__(self, parts: list[Any]) -> None:
        self.parts = parts


class _OfReason:
    def __init__(self, reason: Reason) -> None:
        self.reason = reason


class _OfStopped:
    def __init__(self, detail: Any) -> None:
        self.detail = detail


class _OfExit:
    def __init__(self, reason: Any) -> None:
        self.reason = reason


def _open_reason(data: bytes) -> Any:
    return Reason(data.decode())


def _name_of(thing: object) -> str:
    kind = type(thing)
    return _clean(f"{kind.__module__}.{kind.__qualname__}")


def _clean(text: str) -> str:
    """As much of a text as may travel; what is no Unicode is told by its number."""
    return text[:_TEXT].encode("utf-8", "backslashreplace").decode()


def as_it_is(kind: type, value: Any) -> Any:
    """For msgspec: what the codec has opened already."""
    if isinstance(value, kind):
        return value
    raise TypeError(f"a {kind.__name__} was expected, not a {type(value).__name__}")
