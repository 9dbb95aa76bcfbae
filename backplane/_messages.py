"""The values of the mesh: identities, link modes, faults, messages and outcomes.

All of them are frozen and can be hashed, compared, pickled and matched by
position. Nothing here knows a Device, a loop or a thread, and this module
imports nothing of ours: what travels must not depend on what runs.

``DeviceID`` and ``Disconnected`` are written by hand rather than as frozen
dataclasses because each end of a Device makes one: assigning through
``object.__setattr__``, as a frozen dataclass must, costs four times as much.
"""

from __future__ import annotations

import enum
import os
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeAlias, TypeVar, final, get_args

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Realm:
    """The interpreter that ids are told apart by: a random number, new after a fork."""

    number: int = int.from_bytes(os.urandom(8), "big")
    past: ClassVar[list[tuple[int, int]]] = []
    """Before which serial number another realm held: those of the parents by fork."""

    @classmethod
    def renew(cls, serial: int) -> None:
        """Enter a new realm; it holds from a serial number on."""
        cls.past.append((serial, cls.number))
        cls.number = int.from_bytes(os.urandom(8), "big")

    @classmethod
    def of(cls, serial: int) -> int:
        """The realm that a serial number of this interpreter belongs to."""
        return next((number for limit, number in cls.past if serial < limit), cls.number)


@final
class DeviceID:
    """The identity of a Device: never reused, in this interpreter or in another.

    It carries no reference to its Device, so it may be kept, compared, hashed
    and pickled for ever. Two ids are equal when they name the same Device.
    """

    __slots__ = ("_realm", "_serial")

    _serial: int
    _realm: int | None
    """None stands for this interpreter; its number is put in when the id is pickled."""

    def __init__(self, serial: int, realm: int | None = None) -> None:
        """Name the Device number ``serial`` of an interpreter (by default, this one)."""
        self._serial = serial
        self._realm = realm

    @property
    def serial(self) -> int:
        """The Device's number: those of one interpreter count up in order of creation."""
        return self._serial

    @property
    def realm(self) -> int:
        """The random number of the interpreter in which the Device was created."""
        return Realm.of(self._serial) if self._realm is None else self._realm

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, DeviceID):
            return NotImplemented
        if self._serial != other._serial:
            return False
        return self._realm is other._realm is None or self.realm == other.realm

    def __hash__(self) -> int:
        return hash((DeviceID, self._serial))

    def __reduce__(self) -> tuple[type[DeviceID], tuple[int, int]]:
        return DeviceID, (self._serial, self.realm)

    def __repr__(self) -> str:
        if self.realm == Realm.of(self._serial):
            return f"<DeviceID {self._serial}>"
        return f"<DeviceID {self._serial} of {self.realm:016x}>"


class LinkMode(enum.Flag):
    """Who tells whom, seen from the Device (or Line) on which ``link`` is called.

    Modes add up: ``MONITOR | NOTIFY`` is ``PEER``.
    """

    MONITOR = 1
    """This one hears when the other disconnects."""
    NOTIFY = 2
    """The other hears when this one disconnects."""
    PEER = 3
    """Both hear of each other."""


@final
@dataclass(frozen=True, slots=True)
class Dropped:
    """The Device was forgotten: it was garbage-collected without having been ended."""


@final
@dataclass(frozen=True, slots=True, eq=False)
class Failed:
    """The Device's work raised.

    Two of these are equal when they hold the very same exception object: an
    exception's own ``__eq__`` is the user's code and is never called.
    """

    exception: BaseException
    """What was raised, with its traceback as far as it has come."""

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Failed):
            return NotImplemented
        return self.exception is other.exception

    def __hash__(self) -> int:
        return hash((Failed, id(self.exception)))

    def __repr__(self) -> str:
        return f"Failed({_repr_exception(self.exception)})"


@final
class Cascaded:
    """A Device that this one depended on ended with a fault, and took it along.

    Cascades nest: ``fault`` is the sender's own fault, which may be a
    ``Cascaded`` too. ``root`` and ``path`` unroll them; no operation here
    recurses, so a cascade may be of any length.
    """

    __slots__ = ("_fault", "_root", "_sender")
    __match_args__ = ("sender", "fault")

    _sender: DeviceID
    _fault: Fault
    _root: RootFault

    def __init__(self, sender: DeviceID, fault: Fault) -> None:
        """Say that ``sender``, which ended with ``fault``, brought this Device down."""
        self._sender = sender
        self._fault = fault
        self._root = fault._root if isinstance(fault, Cascaded) else fault

    @property
    def sender(self) -> DeviceID:
        """The Device whose end brought this one down."""
        return self._sender

    @property
    def fault(self) -> Fault:
        """Why the sender ended."""
        return self._fault

    @property
    def root(self) -> RootFault:
        """The first cause: the fault at the far end of the cascade."""
        return self._root

    @property
    def path(self) -> tuple[DeviceID, ...]:
        """The Devices that the cascade came through, the nearest first, its origin last."""
        return tuple(link._sender for link in self._links())

    def _links(self) -> list[Cascaded]:
        links = [self]
        while isinstance(fault := links[-1]._fault, Cascaded):
            links.append(fault)
        return links

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Cascaded):
            return NotImplemented
        return self._root == other._root and self.path == other.path

    def __hash__(self) -> int:
        return hash((Cascaded, self._sender, self._root))

    def __reduce__(self) -> tuple[object, tuple[RootFault, tuple[DeviceID, ...]]]:
        return _cascade, (self._root, self.path)

    def __repr__(self) -> str:
        steps = len(self._links())
        if steps == 1:
            return f"Cascaded({self._sender!r}, {self._fault!r})"
        return f"Cascaded({self._sender!r}, <{steps - 1} more, root {self._root!r}>)"


def _cascade(root: RootFault, path: tuple[DeviceID, ...]) -> Fault:
    """Put a cascade together again from its first cause outwards."""
    fault: Fault = root
    for sender in reversed(path):
        fault = Cascaded(sender, fault)
    return fault


@final
@dataclass(frozen=True, slots=True)
class Cancelled:
    """The Device's work was cancelled from outside, by nobody in the mesh."""


@final
@dataclass(frozen=True, slots=True)
class Killed:
    """Somebody lost patience with the Device and ended it over its head."""


@final
@dataclass(frozen=True, slots=True)
class NoConnection:
    """The way to the Device broke. The Device itself may live on."""

    node: str
    """The name of the node that can no longer be reached."""


RootFault: TypeAlias = Dropped | Failed | Cancelled | Killed | NoConnection
"""Every fault that was not handed on by another Device."""

Fault: TypeAlias = RootFault | Cascaded
"""Why a Device ended badly. ``None`` in its place means: it ended well."""

FAULTS: tuple[type, ...] = get_args(Fault)
"""The classes of all faults, for ``isinstance``."""


@final
class Disconnected:
    """A Device that the receiver was linked with has ended."""

    __slots__ = ("_fault", "_sender")
    __match_args__ = ("sender", "fault")

    _sender: DeviceID | int
    """The Device that ended; a number stands for one of this interpreter, see ``disconnected``."""
    _fault: Fault | None

    def __init__(self, sender: DeviceID, fault: Fault | None) -> None:
        """Say that ``sender`` ended, well (``None``) or because of ``fault``."""
        self._sender = sender
        self._fault = fault

    @property
    def sender(self) -> DeviceID:
        """The Device that ended."""
        sender = self._sender
        return DeviceID(sender) if isinstance(sender, int) else sender

    @property
    def fault(self) -> Fault | None:
        """Why it ended; ``None`` if it ended well."""
        return self._fault

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Disconnected):
            return NotImplemented
        return self.sender == other.sender and self._fault == other._fault

    def __hash__(self) -> int:
        return hash((Disconnected, self.sender, self._fault))

    def __reduce__(self) -> tuple[type[Disconnected], tuple[DeviceID, Fault | None]]:
        return Disconnected, (self.sender, self._fault)

    def __repr__(self) -> str:
        return f"Disconnected(sender={self.sender!r}, fault={self._fault!r})"


def disconnected(serial: int, fault: Fault | None) -> Disconnected:
    """The news of the end of this interpreter's Device number ``serial``.

    Its id is made when somebody asks for the sender, which many never do: an
    end that is told becomes cheaper by the id.
    """
    return Disconnected(serial, fault)  # type: ignore[arg-type]


@final
@dataclass(frozen=True, slots=True)
class Shutdown:
    """Somebody asks the receiver to end, in good order."""

    sender: DeviceID | None
    """Who asks; ``None`` if it is no Device."""


Message: TypeAlias = Disconnected | Shutdown
"""All that a Device can receive."""


@final
@dataclass(frozen=True, slots=True)
class Messaged:
    """What ``watch`` returns when a message came first."""

    message: Message


@final
@dataclass(frozen=True, slots=True)
class Completed(Generic[T_co]):
    """What ``watch`` returns when the function came first."""

    value: T_co


Watched: TypeAlias = Messaged | Completed[T]
"""What came first: ``Messaged(message)`` or ``Completed(value)``."""


def _repr_exception(exception: BaseException) -> str:
    """Show an exception whose own ``__repr__`` may raise."""
    try:
        return repr(exception)
    except Exception:  # noqa: BLE001 - a fault must be printable whatever it holds
        return f"<{type(exception).__qualname__} whose repr raises>"
