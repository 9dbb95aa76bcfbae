"""Where those wait who have something for a peer that is slow."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import final

from backplane.lowlevel import Parking, checkpoint, new_parking


@final
class _Turn:
    """One who waits."""

    __slots__ = ("has_come", "parking")

    parking: Parking
    has_come: bool

    def __init__(self) -> None:
        self.parking = new_parking()
        self.has_come = False


@final
class Room:
    """Lets those in who wait, in the order in which they came.

    They may be of any thread, and none is held up if one whose turn it is cannot take it
    now; so two who come close after each other may change places. No turn is lost: who
    comes looks whether there is room after he is in the queue, and who makes room looks
    into it afterwards; and who does not take his turn, or leaves some room, passes it on.
    """

    __slots__ = ("_is_free", "_turns")

    def __init__(self, is_free: Callable[[], bool]) -> None:
        """Make it; ``is_free`` tells if there is room, or if there will never be any."""
        self._is_free = is_free
        self._turns: deque[_Turn] = deque()

    def __len__(self) -> int:
        return len(self._turns)

    def open(self) -> None:
        """If there is room, it is the next one's turn."""
        if self._turns and self._is_free():
            self._next()

    def close(self) -> None:
        """It is everybody's turn: there will be no room any more."""
        while self._turns:
            self._next()

    def _next(self) -> None:
        try:
            turn = self._turns.popleft()
        except IndexError:
            return  # another thread was quicker
        turn.has_come = True
        turn.parking.wake()

    async def wait(self, again: bool) -> None:
        """Wait for one's turn; ``again``: before all others, as one who had it in vain."""
        turn = _Turn()
        if again:
            self._turns.appendleft(turn)
        else:
            self._turns.append(turn)
        self.open()
        try:
            await checkpoint()  # who is cancelled already does not take a turn that comes at once
            while not turn.has_come:
                await turn.parking.park()
        except BaseException:
            try:
                self._turns.remove(turn)
            except ValueError:
                self.open()
            raise
