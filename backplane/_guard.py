"""Work whose messages go to a function, which says whether to stop: what processes are made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias, final

from ._line import Linkable
from ._messages import Message
from ._work import Work

Decide: TypeAlias = Callable[[Message | None], bool]
"""Is called with each message, and with None after a ``poke``; True stops the work."""


@final
class Guard(Work):
    """A block of the current task in which a function hears each message to a Device at once.

    The function is called in the loop of the block, and often from inside the
    very call that sends: it must not wait, and do little. Where it returns True,
    the work is cancelled, as by ``manage``; messages that come later stay in the
    mailbox. Unlike ``manage``, a guard does not end the Device::

        guard = Guard(device, decide)
        guard.enter()  # False if a message has stopped it from the start
        try:
            await work()
        except BaseException as exc:
            rest = await guard.leave(exc)  # what is left of it
        else:
            rest = await guard.leave(None)
    """

    __slots__ = ("_decide", "_poked")

    _decide: Decide
    _poked: bool

    def __init__(self, owner: Linkable, decide: Decide) -> None:
        super().__init__(owner._board)
        self._decide = decide
        self._poked = False

    def _is_stopping(self) -> bool:
        while (message := self._board.take()) is not None:
            if self._decide(message):
                return True
        return self._decide(None)

    def _look(self) -> None:
        if self._running and self.stopped and self._poked:
            self._poked = False
            self._decide(None)  # what it is poked for may concern even one that is stopping
        else:
            super()._look()

    def enter(self) -> bool:
        """Begin; False if the work must not.

        Raises:
            DeviceDownError: The Device has disconnected.
            anyio.BusyResourceError: Somebody else has its messages.
        """
        self._start("guard work")
        return not self.stopped

    def is_cancelled(self) -> bool:
        """Whether the block is being cancelled, by the function or by somebody else.

        Between ``enter`` and ``leave``: by this a cancellation that somebody has asked for
        is told from one that only looks like it, and came out of something that was awaited.
        """
        return self._scope.is_cancelled()

    async def leave(self, exc: BaseException | None) -> BaseException | None:
        """End, after the work has raised ``exc``; return what is left of that.

        A cancellation that the function caused is taken out; what came from
        outside is left.
        """
        rest = self._finish(exc)
        if self._scope.has_unmet:
            rest = await self._scope.meet() or rest
        del self._scope  # it refers to this; a cycle would wait for the collector
        return rest

    def poke(self) -> None:
        """Have the function called with None, soon, in the loop of the work. From any thread.

        Even if the work is being stopped already.
        """
        self._poked = True
        scope = getattr(self, "_scope", None)
        if scope is not None:
            scope.wake()
