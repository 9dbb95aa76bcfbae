"""Marked methods across nodes: found by their names, their arguments checked by annotations."""

from __future__ import annotations

import inspect
import typing
import weakref
from typing import Any, Final, final

import msgspec

from backplane.bridge import PayloadError

from ._gen_server import GenServer
from ._wire import as_it_is


@final
class Shape:
    """The types of a method's parameters and of its result, as far as they are known."""

    __slots__ = ("_any_named", "_any_positional", "_method", "_named", "_positional", "result")

    def __init__(self, method: Any) -> None:
        try:
            known = typing.get_type_hints(method, include_extras=True)
        except Exception:  # noqa: BLE001 - of names that are not there when it runs
            known = {}
        self._method = str(getattr(method, "__qualname__", method)).rpartition("<locals>.")[2]
        self._positional: list[tuple[str, Any]] = []
        self._named: dict[str, Any] = {}
        self._any_positional: tuple[str, Any] = "", Any
        self._any_named: Any = Any
        for parameter in list(inspect.signature(method).parameters.values())[1:]:
            hint = _checkable(known.get(parameter.name, Any))
            match parameter.kind:
                case parameter.VAR_POSITIONAL:
                    self._any_positional = parameter.name, hint
                case parameter.VAR_KEYWORD:
                    self._any_named = hint
                case kind:
                    if kind is not parameter.KEYWORD_ONLY:
                        self._positional.append((parameter.name, hint))
                    self._named[parameter.name] = hint
        self.result: Any = _checkable(known.get("return", Any))

    @classmethod
    def of(cls, method: Any) -> Shape:
        """That of a method, found out once."""
        shape = _shapes.get(method)
        if shape is None:
            shape = _shapes[method] = cls(method)
        return shape

    def arguments(
        self, args: list[Any], kwargs: dict[Any, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What has come, as the annotations say; the method itself refuses the wrong number.

        Raises:
            PayloadError: Something is of another type.
        """
        hints = self._positional
        many = len(hints)
        made = [
            self._argument(*(hints[index] if index < many else self._any_positional), value)
            for index, value in enumerate(args)
        ]
        by_name = {
            str(key): self._argument(str(key), self._named.get(str(key), self._any_named), value)
            for key, value in kwargs.items()
        }
        return tuple(made), by_name

    def _argument(self, name: str, hint: Any, value: Any) -> Any:
        try:
            return _convert(value, hint)
        except msgspec.ValidationError as error:
            what = f"argument {name[:100]!r} of {self._method}"
            raise PayloadError(f"{what} is of the wrong type: {error}") from None

    def answer(self, value: Any) -> Any:
        """A result that has come, as the annotation says.

        Raises:
            PayloadError: It is of another type.
        """
        try:
            return _convert(value, self.result)
        except msgspec.ValidationError as error:
            what = f"what the server has returned from {self._method}"
            raise PayloadError(f"{what} is of the wrong type: {error}") from None


_shapes: Final[weakref.WeakKeyDictionary[Any, Shape]] = weakref.WeakKeyDictionary()


def find(server: type[GenServer] | None, name: str, kind: str) -> Any:
    """The method of a server's class that is marked as a call or a cast.

    Like the server itself, this goes by the name: one that overrides a marked
    one need not be marked again.

    Raises:
        PayloadError: There is none.
    """
    for each in () if server is None else server.__mro__:
        method = vars(each).get(name)
        if getattr(method, "__backplane_kind__", None) == kind:
            return method
    raise PayloadError(f"{name[:100]!r} is no method of that process, marked @on_{kind}")


def _checkable(hint: Any) -> Any:
    """A type that msgspec can check; else any."""
    try:
        msgspec.convert(None, hint, dec_hook=as_it_is)
    except msgspec.ValidationError:
        return hint
    except Exception:  # noqa: BLE001 - it says in its own ways what it cannot do
        return Any
    return Any if hint is None or hint is type(None) else hint


def _convert(value: Any, hint: Any) -> Any:
    return value if hint is Any else msgspec.convert(value, hint, dec_hook=as_it_is)
