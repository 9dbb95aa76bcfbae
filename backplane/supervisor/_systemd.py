"""What systemd wants to hear from a service: the ``sd_notify`` protocol, without a dependency.

A message is one datagram of ``NAME=value`` lines to the socket that the service
manager names in ``NOTIFY_SOCKET``. It needs ``Type=notify`` (or, for the
watchdog alone, ``NotifyAccess=main``) in the unit; elsewhere all this does nothing.
"""

from __future__ import annotations

import logging
import os
import socket

import anyio

_logger = logging.getLogger("backplane.supervisor")


def notify(state: str) -> bool:
    """Tell the service manager something, if there is one that listens.

    It neither waits nor raises: a message that cannot be delivered at once is
    dropped, and that is logged. May be called in any thread.

    Args:
        state: What to say: ``"READY=1"``, ``"STATUS=Warming up"``; several
            lines are one message.

    Returns:
        Whether it was sent. False if nobody has asked for it.

    Example:
        >>> notify("STATUS=Warming up")  # not under systemd
        False
    """
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return False
    if address[0] not in "/@":
        _logger.warning("cannot tell systemd %r: NOTIFY_SOCKET is %r", state, address)
        return False
    path = os.fsencode(address)
    if path.startswith(b"@"):
        path = b"\0" + path[1:]  # Linux's abstract names, which no file system has
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            sender.sendto(state.encode(), path)
    except OSError as error:
        _logger.warning("cannot tell systemd %r at %s: %s", state, address, error)
        return False
    return True


def watchdog_interval() -> float | None:
    """How many seconds to leave between two pings; None if no watchdog waits for this process.

    It is half of what the unit's ``WatchdogSec=`` allows, as systemd recommends.
    """
    allowed, process = os.environ.get("WATCHDOG_USEC"), os.environ.get("WATCHDOG_PID")
    if not allowed or process not in (None, "", str(os.getpid())):
        return None
    try:
        microseconds = int(allowed)
    except ValueError:
        microseconds = 0
    if microseconds <= 0:
        _logger.warning("no watchdog: WATCHDOG_USEC is %r", allowed)
        return None
    return microseconds / 2_000_000


async def ping_watchdog() -> None:
    """Tell systemd again and again that the event loop turns, if it asks for that.

    A loop that is blocked does not ping, so systemd notices and restarts the
    service. Runs until cancelled, also where there is no watchdog, so that it may
    be anybody's child. ``run_service`` does this already.
    """
    interval = watchdog_interval()
    while interval is not None:
        notify("WATCHDOG=1")
        await anyio.sleep(interval)
    await anyio.sleep_forever()
