"""The Devices of ours of whose ends a peer's Devices are to hear, since they were linked here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import final

from backplane import DeviceID, Disconnected, Fault, Line
from backplane.lowlevel import Outpost

from ._exports import Exports, Right
from ._frames import Fire, Frame, Listen, Unlisten, WireFault, WireLine
from ._identity import Identity, pack_ended, pack_export


@final
@dataclass(slots=True)
class _Speaker:
    """A Device of ours that some of theirs are to hear of."""

    line: WireLine
    listeners: set[bytes] = field(default_factory=set)
    told: bool = False
    """They have been told of its end, since anybody was last to hear of it."""


@final
class Speakers:
    """Tells a peer which of its Devices are to hear of which of ours, and of the ends of these.

    A listener is known by the token of its outpost, which has the other half of the
    pair in its key: the speakers that it is to hear of.
    """

    def __init__(
        self,
        me: Identity,
        exports: Exports,
        put: Callable[[Frame], None],
        pack_fault: Callable[[Fault | None], WireFault | None],
    ) -> None:
        self._me = me
        self._exports = exports
        self._put = put
        self._pack_fault = pack_fault
        self._speakers: dict[DeviceID, _Speaker] = {}

    def __len__(self) -> int:
        return len(self._speakers)

    def listen(self, outpost: Outpost, line: Line) -> None:
        """A Device of theirs is to hear of one of ours."""
        if line.id not in self._speakers:
            export = self._exports.mint(line, Right(0))
            self._speakers[line.id] = _Speaker(pack_export(self._me, export))
        self._say_listen(outpost, line.id)

    def _say_listen(self, outpost: Outpost, device: DeviceID) -> None:
        token, speaker = outpost.key.line.token, self._speakers[device]
        # Each time that it is linked: over there it may have been unlinked meanwhile.
        self._put(Listen(token, speaker.line))
        speaker.listeners.add(token)
        speaker.told = False
        outpost.key.speakers.add(device)

    def unlisten(self, outpost: Outpost, device: DeviceID) -> None:
        """It is not to hear of that any longer."""
        token = outpost.key.line.token
        speaker = self._speakers.get(device)
        if speaker is not None and token in speaker.listeners:
            outpost.key.speakers.discard(device)
            self._forget_listener(device, token)
            self._put(Unlisten(token, speaker.line.token))

    def tell(self, outpost: Outpost, message: Disconnected) -> None:
        """A Device of ours has ended of which that one is to hear."""
        device = message.sender
        if device not in outpost.key.speakers:
            # Another thread has linked the two, and was too late to say so.
            if device not in self._speakers:
                self._speakers[device] = _Speaker(pack_ended(self._me, device))
            self._say_listen(outpost, device)
        speaker = self._speakers.get(device)
        if speaker is None:
            return  # with the link that was said just now too much waited, and all is cleared
        outpost.key.speakers.discard(device)
        self._forget_listener(device, outpost.key.line.token)
        if not speaker.told:
            speaker.told = True
            self._put(Fire(speaker.line.token, self._pack_fault(message.fault)))

    def forget(self, outpost: Outpost) -> None:
        """A Device of theirs has ended, or nobody holds it here: it hears of nobody any longer."""
        key = outpost.key
        for device in key.speakers:
            self._forget_listener(device, key.line.token)
        key.speakers.clear()

    def _forget_listener(self, device: DeviceID, token: bytes) -> None:
        speaker = self._speakers[device]
        speaker.listeners.discard(token)
        if not speaker.listeners:
            del self._speakers[device]

    def clear(self) -> None:
        """Forget all."""
        self._speakers.clear()
