"""Lines: handles to Devices, and what can be done through either of the two."""

from __future__ import annotations

from typing import Final, NoReturn, final

from ._errors import DeviceDownError, LinkDownError
from ._messages import FAULTS, DeviceID, Disconnected, LinkMode, Message, Shutdown
from ._plugboard import OPEN, Plugboard

# A member of an Enum is looked up through its metaclass; a global is much cheaper.
_MONITOR: Final = LinkMode.MONITOR
_NOTIFY: Final = LinkMode.NOTIFY
_PEER: Final = LinkMode.PEER


class Linkable:
    """What Devices and Lines have in common: they lead to a Device, and can be linked."""

    __slots__ = ("__weakref__", "_board")

    _board: Plugboard

    @property
    def id(self) -> DeviceID:
        """The identity of the Device, which is never used again."""
        return self._board.id

    @property
    def name(self) -> str | None:
        """The name that the Device was given."""
        return self._board.name

    @property
    def connected(self) -> bool:
        """Whether the Device has not ended yet. True may be out of date at once, False never."""
        return self._board.end is OPEN

    def link(self, other: Linkable, mode: LinkMode = LinkMode.PEER) -> None:
        """Arrange for one Device to be told when the other disconnects.

        Links add up: a ``MONITOR`` and then a ``NOTIFY`` are a ``PEER``, and
        linking twice is linking once. Each link fires exactly once. Both
        directions of a ``PEER`` are linked, or neither is. Should either Device
        end in another thread meanwhile, it counts as having ended just after.

        Args:
            other: The Device at the other end, or a Line to it.
            mode: Who tells whom, from this Device's point of view.

        Raises:
            DeviceDownError: If this Device has already disconnected. Nothing
                was linked.
            LinkDownError: If the other one has. Nothing was linked.
            LinkError: If one of the two lives elsewhere, and may not be made to
                hear of the other. Nothing was linked.
            ValueError: If ``other`` is this Device, or the mode is empty.
            TypeError: If ``other`` is neither a Device nor a Line.
        """
        mine = self._board
        try:
            theirs = other._board
            if theirs.end is not OPEN or mine.end is not OPEN:
                theirs = mine
        except AttributeError:
            theirs = mine
        if theirs is mine:
            raise _refusal(mine, other)
        # From here on either may end in another thread: that counts as just after the link.
        if mode is _MONITOR:
            mine.listen(theirs)
        elif mode is _PEER:
            mine.pair(theirs)
        elif mode is _NOTIFY:
            theirs.listen(mine)
        else:
            raise _mode_error(mode)

    def unlink(self, other: Linkable, mode: LinkMode = LinkMode.PEER) -> None:
        """Take a link, or one direction of it, back.

        Modes subtract: a ``PEER`` less a ``MONITOR`` is a ``NOTIFY``. What is
        not linked, or has ended, is left as it is. A ``Disconnected`` that is
        already in a mailbox, or that another thread is delivering, stays.

        Args:
            other: The Device at the other end, or a Line to it.
            mode: Which directions to take back, from this Device's point of view.

        Raises:
            ValueError: If ``other`` is this Device, or the mode is empty.
            TypeError: If ``other`` is neither a Device nor a Line.
        """
        mine = self._board
        theirs = _partner(mine, other, "unlink")
        if mode is _MONITOR:
            mine.unlisten(theirs)
        elif mode is _PEER:
            mine.unlisten(theirs)
            theirs.unlisten(mine)
        elif mode is _NOTIFY:
            theirs.unlisten(mine)
        else:
            raise _mode_error(mode)


@final
class Line(Linkable):
    """A handle to a Device: to link with it and to send to it, from anywhere.

    A Line does not keep its Device alive and may outlive it. It may be copied
    and shared between threads and loops. Two Lines are equal when they lead to
    the same Device. Get one from ``Device.line()``.
    """

    __slots__ = ()

    def __init__(self, board: Plugboard) -> None:
        if not isinstance(board, Plugboard):
            raise TypeError("a Line is not made by hand: call Device.line()")
        self._board = board

    def send(self, message: Message) -> bool:
        """Put a message into the Device's mailbox. It never waits.

        Messages from one sender arrive in the order in which they were sent.

        Returns:
            True if the Device was connected; False if it is gone, and the
            message with it.

        Raises:
            LinkError: If the Device lives elsewhere, and may not be sent to.
            TypeError: If ``message`` is no ``Message``, or has something in it
                that is no ``DeviceID`` or ``Fault``. A Device is not a
                mailbox for anything else; use a queue or stream beside it.
        """
        if type(message) is Disconnected:
            if type(message.sender) is not DeviceID:
                raise TypeError(
                    f"the sender of a Disconnected is a DeviceID, not {_a(message.sender)}"
                )
            if message.fault is not None and not isinstance(message.fault, FAULTS):
                raise TypeError(
                    f"a Disconnected holds a Fault or None, not {_a(message.fault)}; "
                    "wrap an exception as Failed(exception)"
                )
        elif type(message) is Shutdown:
            _check_sender(message.sender)
        else:
            raise TypeError(
                f"cannot send {_a(message)} to {self!r}: a Device receives only Disconnected and "
                "Shutdown; send anything else through a queue or a stream of your own"
            )
        return self._board.deliver(message)

    def shutdown(self, sender: DeviceID | None = None) -> bool:
        """Ask the Device to end in good order: send it ``Shutdown(sender)``.

        Args:
            sender: Who asks, ``None`` if it is no Device.

        Returns:
            As ``send``.

        Raises:
            LinkError: As for ``send``.
        """
        _check_sender(sender)
        return self._board.deliver(Shutdown(sender))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Line):
            return NotImplemented
        return self._board is other._board

    def __hash__(self) -> int:
        return hash(self._board)

    def __copy__(self) -> Line:
        return self

    def __deepcopy__(self, memo: object) -> Line:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{self!r} cannot be pickled: it leads to a Device of this process")

    def __repr__(self) -> str:
        return f"<Line to Device {self._board!r}>"


def _partner(mine: Plugboard, other: Linkable, verb: str) -> Plugboard:
    """The plugboard behind ``other``, or the error that there is none to ``verb`` with."""
    theirs = getattr(other, "_board", None)
    if not isinstance(theirs, Plugboard):
        raise TypeError(f"cannot {verb} <Device {mine!r}> with {_a(other)}: pass a Device or Line")
    if theirs is mine:
        raise ValueError(f"cannot {verb} <Device {mine!r}> with itself")
    return theirs


def _refusal(mine: Plugboard, other: Linkable) -> Exception:
    """Why ``mine`` cannot be linked with ``other``."""
    theirs = _partner(mine, other, "link")
    if mine.end is not OPEN:
        return DeviceDownError(mine.id, f"link with {theirs.id!r}")
    return LinkDownError(theirs.id, f"link {mine.id!r} with it")


def _check_sender(sender: object) -> None:
    if sender is not None and type(sender) is not DeviceID:
        raise TypeError(f"sender must be a DeviceID or None, not {_a(sender)}; pass device.id")


def _mode_error(mode: object) -> Exception:
    wanted = "LinkMode.MONITOR, LinkMode.NOTIFY or LinkMode.PEER"
    if isinstance(mode, LinkMode):
        return ValueError(f"{mode!r} links nothing: pass {wanted}")
    return TypeError(f"the mode of a link must be {wanted}, not {_a(mode)}")


def _a(thing: object) -> str:
    """Name a thing by its type: its own ``repr`` may be long, secret, or raise."""
    return "None" if thing is None else f"a {type(thing).__qualname__}"
