"""Of whose ends a peer wants to hear."""

from __future__ import annotations

from typing import final

from backplane import DeviceID, Line

from ._ear import Ear


@final
class Watches:
    """The Devices of ours that a peer watches, by the tokens by which it knows them.

    A Device is watched by several tokens if the peer has Lines to it that give different
    rights. It is kept with each, since that may be revoked meanwhile. An ear hears of its
    end as long as it is here.
    """

    def __init__(self, ear: Ear) -> None:
        self._ear = ear
        self._lines: dict[bytes, Line] = {}
        self._tokens: dict[DeviceID, set[bytes]] = {}

    def __len__(self) -> int:
        return len(self._lines)

    def __contains__(self, token: bytes) -> bool:
        return token in self._lines

    def add(self, token: bytes, line: Line) -> None:
        """Add a token that is not there.

        Raises:
            LinkDownError: The Device has ended. Nothing was added.
        """
        self._ear.want(line)
        self._lines[token] = line
        self._tokens.setdefault(line.id, set()).add(token)

    def discard(self, token: bytes) -> None:
        """Forget a token, if it is there."""
        line = self._lines.pop(token, None)
        if line is not None:
            tokens = self._tokens[line.id]
            tokens.discard(token)
            if not tokens:
                del self._tokens[line.id]
            self._ear.let_go(line)

    def discard_device(self, device: DeviceID) -> set[bytes]:
        """Forget a Device that has ended; return all its tokens."""
        tokens = self._tokens.pop(device, set())
        for token in tokens:
            del self._lines[token]
        return tokens

    def clear(self) -> None:
        """Forget all."""
        self._lines.clear()
        self._tokens.clear()
