"""Outposts: where a Device that lives elsewhere can be linked and sent to.

To those who hold a Line to it, an outpost is a Device like any other. It has
no mailbox and no work: what it is sent, whom it is to hear of, and whose end it
hears goes into a queue, for whoever keeps the way to the far Device. No
function of the mesh asks whether a Device is near; an outpost's plugboard does
something else in the same three places.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias, final

from ._line import Line, Linkable
from ._messages import DeviceID, Disconnected, Fault, Message
from ._plugboard import OPEN, Plugboard, Waiter, _wake, next_serial


@final
@dataclass(frozen=True, slots=True)
class Sent:
    """An outpost was sent a message."""

    outpost: Outpost
    message: Message


@final
@dataclass(frozen=True, slots=True)
class Listening:
    """From now on an outpost's Device is to hear of the end of another. May be said twice."""

    outpost: Outpost
    speaker: Line


@final
@dataclass(frozen=True, slots=True)
class Unlistening:
    """It is not to hear of that any longer. May be said twice."""

    outpost: Outpost
    speaker: Line


@final
@dataclass(frozen=True, slots=True)
class Heard:
    """A Device that an outpost was to hear of has ended.

    Comes once. If it ends in another thread than the one that links, it may be
    said before ``Listening``, after which comes ``Unlistening``.
    """

    outpost: Outpost
    message: Disconnected


@final
@dataclass(frozen=True, slots=True)
class Forgotten:
    """Nobody has a Line to an outpost any longer, nor a link with it."""

    outpost: Outpost


OutpostEvent: TypeAlias = Sent | Listening | Unlistening | Heard | Forgotten
"""What happens at an outpost."""


@final
class Outpost:
    """The near end of a Device that lives elsewhere; whoever carries news to it makes one.

    It is for its maker, who gives ``line()`` to others, and ends it with
    ``disconnect`` when the far Device ends or the way to it breaks. Its maker
    does not keep it in being: those do who have a Line to it or a link with it,
    and when the last has let go, ``Forgotten`` comes and ``line()`` is None.

    Whatever happens at it is put into ``events``, in order, from whatever
    thread and at any point of a garbage collection; then ``waiter`` is woken.
    What must not happen, ``permit`` refuses before: it hurts him alone who asked.
    """

    __slots__ = ("_board", "events", "id", "key", "permit", "waiter")

    id: DeviceID
    """The identity of the far Device."""
    events: deque[OutpostEvent]
    waiter: Waiter
    key: Any
    """Its maker's."""
    permit: Callable[[Sent | Listening], object] | None
    """Raises if something must not happen."""
    _board: weakref.ref[_FarBoard]

    @classmethod
    def open(
        cls,
        id: DeviceID,
        name: str | None,
        events: deque[OutpostEvent],
        waiter: Waiter,
        key: Any = None,
        permit: Callable[[Sent | Listening], object] | None = None,
    ) -> tuple[Outpost, Line]:
        """Make the near end of a Device, and the first handle to it.

        Args:
            id: The identity of the far Device, also of this end of it.
            name: What that Device is called.
            events: Where to put what happens.
            waiter: Whom to wake for it, such as a ``Parking``.
            key: Anything; it is for the maker.
            permit: Is called before the Device is sent a message, and before it is to
                hear of another's end, in the thread of whoever asks for that. If it
                raises, he gets the exception, which should be a ``LinkError``, and
                nothing has been done; of a link not half.
        """
        self = cls.__new__(cls)
        self.id = id
        self.events = events
        self.waiter = waiter
        self.key = key
        self.permit = permit
        board = _FarBoard()
        board.serial = next_serial()
        board.name = name
        board.end = OPEN
        board.inbox = None
        board.waiter = None
        board.outpost = self
        self._board = weakref.ref(board, self._on_forgotten)
        return self, Line(board)

    def line(self) -> Line | None:
        """A handle to the Device; None if nobody has had one for a while."""
        board = self._board()
        return None if board is None else Line(board)

    def disconnect(self, fault: Fault | None) -> None:
        """Tell those linked with it that the Device has ended."""
        board = self._board()
        if board is not None:
            board.close(fault)

    def _on_forgotten(self, _: object) -> None:
        self.events.append(Forgotten(self))
        self.waiter.wake_soon()

    def __repr__(self) -> str:
        return f"<Outpost of {self.id!r}>"


def outpost_of(line: Line) -> Outpost | None:
    """The outpost that a Line leads to; None if its Device lives here."""
    board = line._board
    return board.outpost if isinstance(board, _FarBoard) else None


def end_of(it: Linkable) -> Disconnected | None:
    """What is heard of a Device's end; None as long as it is connected.

    Unlike what is heard through a link, it is there as soon as the Device is
    not connected any longer.
    """
    board = it._board
    return None if board.end is OPEN else board._news()


class _FarBoard(Plugboard):
    """The plugboard of an outpost."""

    __slots__ = ("__weakref__", "outpost")

    outpost: Outpost

    @property
    def id(self) -> DeviceID:
        return self.outpost.id

    def _news(self) -> Disconnected:
        return Disconnected(self.outpost.id, self.end)  # type: ignore[arg-type]

    def _ask(self, event: Sent | Listening) -> None:
        permit = self.outpost.permit
        if permit is not None:
            permit(event)

    def listen(self, speaker: Plugboard) -> None:
        self._ask(Listening(self.outpost, Line(speaker)))
        super().listen(speaker)

    def pair(self, other: Plugboard) -> None:
        self._ask(Listening(self.outpost, Line(other)))
        super().pair(other)

    def __setitem__(self, key: Any, value: Any) -> None:
        super().__setitem__(key, value)
        if type(key) is int and key > 0:
            self._tell_link(value)

    def _tell_link(self, speaker: Plugboard) -> None:
        """Say that this is to hear, and look again, for another thread may have said more.

        Whoever unlinks the two, or ends the speaker, looks again, too, in `_settle`:
        so the last one to say something says how it is.
        """
        while True:
            self._happen(Listening(self.outpost, Line(speaker)))
            if self._is_to_hear(speaker):
                return
            self._happen(Unlistening(self.outpost, Line(speaker)))
            if not self._is_to_hear(speaker):
                return

    def _is_to_hear(self, speaker: Plugboard) -> bool:
        return self in speaker and not self._has_heard(speaker)

    def _has_heard(self, speaker: Plugboard) -> bool:
        return -self.serial in speaker

    def pop(self, key: Any, *default: Any) -> Any:
        value = super().pop(key, *default)
        if isinstance(value, Plugboard) and not self._has_heard(value):
            self._happen(Unlistening(self.outpost, Line(value)))
        return value

    def deliver(self, message: Message, wake: Callable[[Waiter], None] = _wake) -> bool:
        if self.end is not OPEN:
            return False
        event = Sent(self.outpost, message)
        self._ask(event)
        self.outpost.events.append(event)
        wake(self.outpost.waiter)
        return True

    def hear(self, message: Message, wake: Callable[[Waiter], None] = _wake) -> bool:
        if self.end is not OPEN:
            return False
        assert isinstance(message, Disconnected)
        self.outpost.events.append(Heard(self.outpost, message))
        wake(self.outpost.waiter)
        return True

    def _happen(self, event: OutpostEvent) -> None:
        if self.end is OPEN:
            self.outpost.events.append(event)
            self.outpost.waiter.wake()
