"""What a child process has to say to its parent: frames on their way, from whatever thread."""

from __future__ import annotations

import socket
import threading
from collections import deque
from typing import final


@final
class Outbox:
    """Frames that are written in their order, each of them whole, by whoever comes first.

    Not by a task alone: work that never awaits may say that it is alive, and what it says
    must not wait for the loop that it blocks.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._frames: deque[bytes | memoryview] = deque()
        self._turn = threading.Lock()

    def __bool__(self) -> bool:
        return bool(self._frames)

    def put(self, data: bytes) -> None:
        """Take a frame in. It stays until somebody pushes."""
        self._frames.append(data)

    def put_once(self, data: bytes) -> None:
        """As ``put``, unless there is one like it that has not gone."""
        if data not in self._frames:
            self._frames.append(data)

    def push(self) -> bool:
        """Write what there is room for now; False if something is left that finds none.

        Nobody waits for another who writes, be it in a thread or, where a signal handler or
        a finalizer pushes, further down on the stack: the other looks again after its turn.
        """
        room = True
        while room and self._frames and self._turn.acquire(blocking=False):
            try:
                room = self._write()
            finally:
                self._turn.release()
        return room

    def _write(self) -> bool:
        while self._frames:
            data = self._frames[0]
            try:
                sent = self._socket.send(data)
            except BlockingIOError:
                return False
            except OSError:  # the parent is gone, and with it all who would read the rest
                self._frames.clear()
                return True
            if sent < len(data):
                self._frames[0] = memoryview(data)[sent:]
            else:
                self._frames.popleft()
        return True
