"""What of a node can be reached from others: named exports, and tokens.

Nothing can unless somebody says so: by ``export``, or by sending a Line. A token
leads to one Device, with certain rights, and is forgotten when that ends.
"""

from __future__ import annotations

import enum
import functools
import inspect
import secrets
import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Concatenate, Final, ParamSpec, Protocol, TypeVar, final

from backplane import Device, DeviceID, Disconnected, Fault, Line, LinkDownError, LinkMode
from backplane.lowlevel import Heard, Outpost, OutpostEvent, end_of

from ._frames import TOKEN

P = ParamSpec("P")
R = TypeVar("R")


class Right(enum.Flag):
    """What the holder of a Line may do with its Device.

    Who does what he has no right to gets a ``NotAllowedError``, at once, and nothing
    is done; the Line stays good, for him and for all others. The node of the Device
    looks again, so a peer that lies has no more rights.
    """

    MONITOR = 1
    """Hear of its end and why: ``LinkMode.MONITOR``. Without, who links so is not refused, but
    hears only that the connection is lost."""
    TALK = 2
    """Send its port messages and requests: ``tell``, ``ask``, ``call``."""
    LINK = 4
    """Have it hear of another's end: ``LinkMode.NOTIFY`` and ``PEER``. A fault of the other
    stops its work, if it is managed."""
    SEND = 8
    """Send it ``Shutdown`` and ``Disconnected``, which stop its work if it is managed:
    ``Line.shutdown`` and ``Line.send``."""
    ALL = 15
    """All of these: what whoever is sent a Line in a message may do."""


@final
class _Quiet:
    """A waiter for those who look by themselves."""

    def wake(self) -> None:
        pass

    wake_soon = wake


QUIET: Final = _Quiet()


class Port(Protocol):
    """What takes the users' messages for a Device. Both are called in the node's loop.

    They are plain functions: what takes longer is for a task that they start.
    """

    def tell(self, message: Any) -> None:
        """Take a message, which must be opened at once: ``message.open(type)``."""

    def call(self, request: Any) -> None:
        """Take a request, which is to be answered some time: ``request.reply(value)``."""


def check_port(port: object) -> None:
    """Refuse what cannot take messages.

    Raises:
        TypeError: It is a class, lacks a method, or has one that is async: nobody would await it.
    """
    for name in ("tell", "call"):
        method = getattr(port, name, None)
        if isinstance(port, type) or not callable(method):
            raise TypeError(f"a port is an object with the methods tell and call, not {port!r}")
        if inspect.iscoroutinefunction(method):
            raise TypeError(
                f"{name} of {port!r} is async, and nobody would await it: have it start a task, "
                "and keep the request to reply later"
            )


@final
@dataclass(slots=True, eq=False)
class Export:
    """A Device that can be reached."""

    token: bytes
    line: Line
    rights: Right
    port: Port | None
    open_port: Port | None = field(init=False)
    """The port, if the rights let the user's messages and requests go there."""

    def __post_init__(self) -> None:
        self.open_port = self.port if Right.TALK in self.rights else None

    @property
    def offers(self) -> Right:
        """What those are told that they may do who get a Line to it: to talk takes a port, too."""
        return self.rights if self.open_port is not None else self.rights & ~Right.TALK


def _locked(method: Callable[Concatenate[Exports, P], R]) -> Callable[Concatenate[Exports, P], R]:
    @functools.wraps(method)
    def run(self: Exports, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with self.lock:
            return method(self, *args, **kwargs)

    return run


@final
class Exports:
    """All that can be reached of one node. All threads that send Lines put some in."""

    def __init__(self) -> None:
        self.lock: threading.RLock = threading.RLock()
        """For what takes several steps here, and in the mirrors of a node's connections. No
        finalizer waits for it: they append to queues alone."""
        self._names: dict[str, tuple[Export, tuple[str, ...]]] = {}
        self._tokens: dict[bytes, Export] = {}
        self._of: dict[DeviceID, dict[tuple[Right, Port | None], Export]] = {}
        self._ports: dict[DeviceID, Port] = {}
        self._ended: dict[bytes, Fault | None] = {}
        """Why those ended that did so lately."""
        self._events: deque[OutpostEvent] = deque()
        self._ear, self._ear_line = Outpost.open(Device().id, None, self._events, QUIET)

    def __len__(self) -> int:
        self.settle()
        return len(self._tokens)

    @_locked
    def settle(self) -> None:
        """Forget those that have ended."""
        while self._events:
            event = self._events.popleft()
            if isinstance(event, Heard):
                message = event.message
                self._ports.pop(message.sender, None)
                for export in self._of.pop(message.sender, {}).values():
                    self._tokens.pop(export.token, None)
                    self._remember(export, message)
        for name in [name for name, (it, _) in self._names.items() if not it.line.connected]:
            del self._names[name]

    @_locked
    def name(
        self,
        name: str,
        line: Line,
        allow: Iterable[str],
        rights: Right,
        port: Port | None,
    ) -> None:
        """Let nodes whose names match one of some patterns find a Device under a name.

        Raises:
            LinkDownError: It has ended.
            ValueError: The name is taken.
        """
        self.settle()
        if not line.connected:
            raise LinkDownError(line.id, f"export it as {name!r}")
        if name in self._names:
            raise ValueError(f"the name {name!r} is exported already: revoke it first")
        export = self.mint(line, rights, port)
        if port is not None and export.token in self._tokens:
            self._ports.setdefault(line.id, port)  # for those who are sent a Line to it, too
        self._names[name] = export, tuple(allow)

    @_locked
    def find(self, name: str, node: str) -> Export | None:
        """What a node finds under a name."""
        self.settle()
        export, allow = self._names.get(name, (None, ()))
        return export if any(fnmatchcase(node, pattern) for pattern in allow) else None

    @_locked
    def mint(self, line: Line, rights: Right, port: Port | None = None) -> Export:
        """Have a token lead to a Device; always the same for the same rights."""
        self.settle()
        if port is None:
            port = self._ports.get(line.id)
        known = self._of.get(line.id, {})
        export = known.get((rights, port))
        if export is None:
            export = Export(secrets.token_bytes(TOKEN), line, rights, port)
            try:
                self._ear_line.link(line, LinkMode.MONITOR)
            except LinkDownError:
                self._remember(export, end_of(line))
                return export  # whoever is given it hears only why
            known[rights, port] = self._tokens[export.token] = export
            self._of[line.id] = known
        return export

    @_locked
    def serve(self, line: Line, port: Port) -> None:
        """Have a port take what is sent to a Device by all who have a Line to it."""
        self.settle()
        if line.connected:
            self._ports[line.id] = port
            self.mint(line, Right.ALL)

    def get(self, token: bytes) -> Export | None:
        """What a token leads to, if that has not ended."""
        export = self._tokens.get(token)
        return export if export is not None and export.line.connected else None

    def _remember(self, export: Export, end: Disconnected | None) -> None:
        """Remember why a Device has ended, for those whose wish to hear it comes late."""
        assert end is not None
        self._ended[export.token] = end.fault
        while len(self._ended) > _REMEMBERED:
            del self._ended[next(iter(self._ended))]

    @_locked
    def fault_of(self, token: bytes) -> tuple[Fault | None] | None:
        """Why a Device that a token led to has ended; None if it has not, or nobody remembers."""
        self.settle()
        if token in self._ended:
            return (self._ended[token],)
        # It ends in another thread just now, which has not told of it yet.
        export = self._tokens.get(token)
        end = None if export is None else end_of(export.line)
        return None if end is None else (end.fault,)

    @_locked
    def revoke(self, line: Line) -> bool:
        """Have no name and no token lead to a Device any longer; False if none did."""
        self.settle()
        self._ports.pop(line.id, None)
        exports = self._of.pop(line.id, {})
        for export in exports.values():
            self._tokens.pop(export.token, None)
        for name in [name for name, (it, _) in self._names.items() if it.line == line]:
            del self._names[name]
        self._ear_line.unlink(line, LinkMode.MONITOR)
        return bool(exports)

    @_locked
    def revoke_name(self, name: str) -> bool:
        """Have a name lead nowhere; the Lines that it led to stay. False if it led nowhere."""
        return self._names.pop(name, None) is not None


_REMEMBERED = 4096
"""Of so many ended Devices the fault is known to those whose wish to hear it comes late."""
