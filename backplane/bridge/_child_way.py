"""The way from a child process to its parent's node, if it was given one."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import final


@final
class Way:
    """The way from here to the parent's node, which can be gone once."""

    def __init__(self, sock: socket.socket, parent: str, name: str, secret: bytes) -> None:
        self.socket: socket.socket | None = sock
        self.parent = parent
        self.name = name
        self.secret = secret
        self.ask: Callable[[], object] = lambda: None


ways: list[Way] = []
"""The one of this process, if it has any."""
