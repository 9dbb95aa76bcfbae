"""Unix sockets: files, and whose they are."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import tempfile
from collections.abc import Callable

from ._addresses import MOST_PATH
from ._errors import AddressError

_BACKLOG = 1024
_HIDDEN = len("/.12345678/s")
"""Bytes that a listener's path has at first, beyond that of its folder."""


def dial_unix(path: str) -> socket.socket:
    """A socket that is connected with whoever listens there.

    Raises:
        OSError: Nobody does, or he has too many to answer already.
    """
    raw = socket.socket(socket.AF_UNIX)
    raw.setblocking(False)
    try:
        raw.connect(path)  # which never waits
    except BaseException:
        raw.close()
        raise
    return raw


def listen_unix(path: str) -> tuple[socket.socket, Callable[[], None]]:
    """A socket file that only its owner can use, from the very start; and what takes it away.

    It is made in a folder of its own that nobody else can enter, and comes to
    its place when it is ready: without touching the umask, which is the whole
    process's.
    """
    folder = os.path.dirname(path)
    if len(os.fsencode(folder)) > MOST_PATH - _HIDDEN:
        raise AddressError(
            f"unix://{path}: to listen there takes a folder whose path has {MOST_PATH - _HIDDEN} "
            "bytes at most"
        )
    private = tempfile.mkdtemp(prefix=".", dir=folder)
    hidden = os.path.join(private, "s")
    raw = socket.socket(socket.AF_UNIX)
    try:
        raw.setblocking(False)
        raw.bind(hidden)
        os.chmod(hidden, 0o600)
        raw.listen(_BACKLOG)
        _make_way(path)
        os.link(hidden, path)  # unlike a renaming, it fails if somebody was quicker
    except BaseException:
        raw.close()
        raise
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(hidden)
        os.rmdir(private)
    return raw, _remover(path)


def _make_way(path: str) -> None:
    """Remove a socket file whose listener has died."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise AddressError(f"unix://{path}: there is a file that is no socket")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except OSError:
            pass  # it is busy, or is not for us
    raise OSError(errno.EADDRINUSE, f"somebody listens at unix://{path} already")


def _remover(path: str) -> Callable[[], None]:
    """What takes a listener's file away, unless another's has taken its place."""

    def identity() -> tuple[int, int]:
        status = os.lstat(path)
        return status.st_dev, status.st_ino

    mine = identity()

    def remove() -> None:
        with contextlib.suppress(OSError):
            if identity() == mine:
                os.unlink(path)

    return remove
