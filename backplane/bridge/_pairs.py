"""Which Devices of ours a peer has had hear of which of its own."""

from __future__ import annotations

from typing import final

from backplane import DeviceID, Line

from ._ear import Ear


@final
class Pairs:
    """The links that a peer has made: pairs of a Device of ours and a token of its own.

    They are forgotten when the peer takes them back, or either Device ends; so what
    a peer has us hold can be counted. Of the end of ours an ear hears as long.
    """

    def __init__(self, ear: Ear) -> None:
        self._ear = ear
        self._listeners: dict[bytes, dict[DeviceID, Line]] = {}
        self._speakers: dict[DeviceID, set[bytes]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, pair: tuple[Line, bytes]) -> bool:
        listener, speaker = pair
        return speaker in self._speakers.get(listener.id, ())

    def add(self, listener: Line, speaker: bytes) -> None:
        """Add a pair that is not there.

        Raises:
            LinkDownError: The listener has ended. Nothing was added.
        """
        self._ear.want(listener)
        self._listeners.setdefault(speaker, {})[listener.id] = listener
        self._speakers.setdefault(listener.id, set()).add(speaker)
        self._count += 1

    def discard(self, listener: Line, speaker: bytes) -> bool:
        """Forget a pair; False if it is not there."""
        found = (listener, speaker) in self
        if found:
            self._forget(listener.id, speaker)
            self._ear.let_go(listener)
        return found

    def discard_listener(self, listener: DeviceID) -> set[bytes]:
        """Forget all pairs of a Device of ours that has ended; return with which tokens."""
        speakers = self._speakers.get(listener, set()).copy()
        for speaker in speakers:
            self._forget(listener, speaker)
        return speakers

    def discard_speaker(self, speaker: bytes) -> None:
        """Forget all pairs with a token of theirs."""
        for listener in list(self._listeners.get(speaker, {}).values()):
            self._forget(listener.id, speaker)
            self._ear.let_go(listener)

    def is_speaker(self, token: bytes) -> bool:
        """Whether any pair has that token."""
        return token in self._listeners

    def clear(self) -> None:
        """Forget all."""
        self._listeners.clear()
        self._speakers.clear()
        self._count = 0

    def _forget(self, listener: DeviceID, speaker: bytes) -> None:
        listeners, speakers = self._listeners[speaker], self._speakers[listener]
        del listeners[listener]
        speakers.discard(speaker)
        if not listeners:
            del self._listeners[speaker]
        if not speakers:
            del self._speakers[listener]
        self._count -= 1
