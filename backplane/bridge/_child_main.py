"""What a child process runs first: a script, that needs nothing but the standard library.

It is told from where to import before it imports anything else, this package included.
"""

import os
import pickle
import signal
import socket
import struct
import sys
import threading
from typing import Any


def main() -> None:
    """Read what to do, and do it."""
    conversation, lifeline, records, *mesh = passed = [int(each) for each in sys.argv[1:]]
    for fd in passed:
        os.set_inheritable(fd, False)
    # The parent's thread may have blocked signals, its shell may have ignored them.
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sock = socket.socket(fileno=conversation)
    boot = read_boot(sock)
    if boot is None:
        sock.close()  # the parent has changed its mind, or is dead
        return
    if boot["watch"]:
        threading.Thread(target=watch, args=(lifeline,), daemon=True).start()
    sys.path[:] = boot["path"]
    sys.argv[:] = boot["argv"]

    from backplane.bridge._child_work import work

    work(sock, socket.socket(fileno=records), boot, [socket.socket(fileno=fd) for fd in mesh])


def read_boot(sock: socket.socket) -> Any:
    """The first frame: four bytes of length, one of kind, a pickle. See ``_child_control``."""
    head = sock.recv(5, socket.MSG_WAITALL)
    if len(head) < 5:
        return None
    size = struct.unpack(">I", head[:4])[0] - 1
    parts = []
    while size:
        part = sock.recv(min(size, 1 << 20))
        if not part:
            return None
        parts.append(part)
        size -= len(part)
    return pickle.loads(b"".join(parts))


def watch(lifeline: int) -> None:
    """Kill the whole group when the parent has ended, where the kernel does not do it."""
    os.read(lifeline, 1)
    os.killpg(0, signal.SIGKILL)  # pragma: no cover - whatever is to tell of it dies by it


if __name__ == "__main__":
    main()
