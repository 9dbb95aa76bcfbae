"""What a child process prints and logs, on its way to its parent's ``logging``."""

from __future__ import annotations

import functools
import logging
import os
import pickle
import select
import socket
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import IO, Any, final

LOGGER = logging.getLogger("backplane.bridge.child")

RECORD_SOCKET = socket.SOCK_SEQPACKET if sys.platform == "linux" else socket.SOCK_DGRAM
"""A record is a packet: it goes as a whole or not at all, from any thread, without a lock,
and what has been sent is there even if the sender is killed in the next moment."""

_MAX_LINE = 65536
_MAX_RECORD = 100_000
"""Bytes of a record, pickled; a packet must fit into the socket's buffer."""
_MAX_TEXT = 20_000
_MAX_READS = 16
"""Reads from one sink before the others are looked at."""
_PATIENCE = 0.1
"""Seconds that the child waits, once, for a parent that is slow to take its records."""


_LAST_PATIENCE = 1.0
"""Seconds that it waits at its end to tell how many were lost."""


class Sink(ABC):
    """Something that a child writes to, as its parent reads it: in the keeper's thread."""

    @abstractmethod
    def fileno(self) -> int:
        """What to wait for."""

    @abstractmethod
    def drain(self) -> bool:
        """Read what is there, without waiting. False at the end."""

    @abstractmethod
    def close(self) -> None:
        """There will be no more."""


@final
class LineSink(Sink):
    """Lines that the child prints; each becomes a record of ``backplane.bridge.child``."""

    def __init__(self, pipe: IO[bytes], level: int, fields: dict[str, object]) -> None:
        self._pipe = pipe
        self._fd = pipe.fileno()
        os.set_blocking(self._fd, False)
        self._level = level
        self._fields = fields
        self._rest = b""

    def fileno(self) -> int:
        """The pipe."""
        return self._fd

    def drain(self) -> bool:
        """Log the lines that are complete."""
        for _ in range(_MAX_READS):
            try:
                data = os.read(self._fd, 65536)
            except BlockingIOError:
                return True
            if not data:
                return False
            *lines, self._rest = (self._rest + data).split(b"\n")
            while len(self._rest) > _MAX_LINE:
                lines.append(self._rest[:_MAX_LINE])
                self._rest = self._rest[_MAX_LINE:]
            for line in lines:
                self._log(line)
        return True

    def _log(self, line: bytes) -> None:
        text = line.decode("utf-8", "backslashreplace").removesuffix("\r")
        _hand_over(lambda: LOGGER.log(self._level, "%s", text, extra=self._fields))

    def close(self) -> None:
        """Log the last line, if it has no end."""
        if self._rest:
            self._log(self._rest)
        self._pipe.close()


@final
class RecordSink(Sink):
    """Records that the child logs; each goes to the logger of the same name here."""

    def __init__(self, sock: socket.socket, fields: dict[str, object]) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._fields = fields

    def fileno(self) -> int:
        """The socket."""
        return self._socket.fileno()

    def drain(self) -> bool:
        """Hand over the records that are there."""
        for _ in range(_MAX_READS * 16):
            try:
                data = self._socket.recv(2 * _MAX_RECORD)
            except BlockingIOError:
                return True
            except OSError:
                return False
            if not data:
                return False
            _hand_over(functools.partial(self._handle, data))
        return True

    def _handle(self, data: bytes) -> None:
        lost, fields = pickle.loads(data)
        if lost:
            LOGGER.warning("%d log records of the process were lost", lost, extra=self._fields)
        if fields is not None:
            record = logging.makeLogRecord({**fields, **self._fields})
            logger = logging.getLogger(record.name)
            if logger.isEnabledFor(record.levelno):
                logger.handle(record)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


def _hand_over(log: Callable[[], object]) -> None:
    try:
        log()
    except Exception:  # noqa: BLE001 - a filter of the user's: it must not end the keeper
        logging.Handler().handleError(
            logging.makeLogRecord({"msg": "a record of a child process could not be logged"})
        )


@final
class RecordHandler(logging.Handler):
    """Sends what the child logs to its parent. It never keeps the child waiting for long.

    When the parent is slow, one record waits for it a moment. If that is not enough, those
    that follow are lost until there is room again; they are counted, and the next that
    goes through tells of it.
    """

    def __init__(self, sock: socket.socket, name: str) -> None:
        super().__init__()
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        self._socket = sock
        self._name = name
        self._pid = os.getpid()
        self.lost = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Send a record, or count it."""
        try:
            fields = self._fields_of(record)
        except Exception:  # noqa: BLE001 - as logging's own handlers: the message is the user's
            self.handleError(record)
            return
        self._send(fields)

    def _fields_of(self, record: logging.LogRecord) -> dict[str, Any]:
        """A record as a dictionary that can be sent: texts are made here."""
        fields = dict(record.__dict__)
        fields.update(msg=record.getMessage()[:_MAX_TEXT], args=None, exc_info=None)
        if record.exc_info and not record.exc_text:
            fields["exc_text"] = logging.Formatter().formatException(record.exc_info)
        if record.processName == "MainProcess":
            fields["processName"] = self._name
        return fields

    def _send(self, fields: dict[str, Any] | None, patience: float = _PATIENCE) -> None:
        lost, self.lost = self.lost, 0
        data = _pack(lost, fields)
        try:
            try:
                self._socket.send(data)
            except BlockingIOError:
                if lost and fields is not None:
                    raise
                room = select.poll()
                room.register(self._socket, select.POLLOUT)
                room.poll(patience * 1000)
                self._socket.send(data)
        except OSError:  # no room, or nobody is there
            self.lost += lost + (fields is not None)

    def close(self) -> None:
        """Tell how many were lost, if any."""
        if self.lost and os.getpid() == self._pid:
            self._send(None, _LAST_PATIENCE)
        self._socket.close()
        super().close()


def _pack(lost: int, fields: dict[str, Any] | None) -> bytes:
    try:
        data = pickle.dumps((lost, fields))
        if len(data) <= _MAX_RECORD:
            return data
    except Exception:  # noqa: BLE001 - something that the user has added
        pass
    assert fields is not None
    plain = logging.makeLogRecord({}).__dict__
    short = {
        key: value[:_MAX_TEXT] if isinstance(value, str) else value
        for key, value in fields.items()
        if key in plain and isinstance(value, str | int | float | None)
    }
    return pickle.dumps((lost, short))
