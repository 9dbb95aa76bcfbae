"""A node in an interpreter of its own, which tests kill, stop, block and starve.

It says where it listens, and then does as the words on its standard input say.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from typing import Any

import anyio

from backplane import Device
from backplane.bridge import Limits, Node, NotConnectedError, Peer, Right


class Echo:
    """Answers each request with itself."""

    def tell(self, message: Any) -> None:
        """Block the loop for so many seconds."""
        time.sleep(message.open(float))

    def call(self, request: Any) -> None:
        """Answer."""
        request.reply(request.open())


def say(word: object) -> None:
    """Tell the test."""
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


async def words() -> Any:
    """What the test says."""
    buffer = ""
    while text := await heard():
        buffer += text
        while "\n" in buffer:
            word, _, buffer = buffer.partition("\n")
            yield word


async def heard() -> str:
    """Some of the standard input; nothing at its end."""
    await anyio.wait_readable(sys.stdin.fileno())
    return os.read(sys.stdin.fileno(), 1000).decode()


def has_told_all(peer: Peer) -> bool:
    """Whether the system has all that there is to say to a peer."""
    session = peer._session
    return not (session.outbox.events or session.outbox.waiting) and session.pulse.is_idle


def starve() -> list[int]:
    """Use up all descriptors."""
    limit = max(map(int, os.listdir("/proc/self/fd"))) + 30
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    held = []
    try:
        while True:
            held.append(os.dup(0))
    except OSError:
        return held


async def main(*arguments: str) -> None:
    """Be a node, until told to end."""
    address, secret, heartbeat, dead_after, count = arguments
    devices = [Device() for _ in range(int(count))]
    echo = Echo()
    async with Node(
        "b",
        secret=bytes.fromhex(secret),
        heartbeat=float(heartbeat),
        dead_after=float(dead_after),
        limits=Limits(handshake=10),
    ) as node:
        for number, device in enumerate(devices):
            node.export(f"device {number}", device, rights=Right.ALL, port=echo)
        say(await node.listen(address, insecure_plaintext=True))
        held: list[int] = []
        async for word in words():
            match word.split():
                case ["starve"]:
                    held = starve()
                    say(len(held))
                case ["feed"]:
                    for fd in held:
                        os.close(fd)
                    say("fed")
                case ["peers"]:
                    say(len(node.peers()))
                case ["connect", to]:
                    try:
                        await node.connect(to)
                        say("connected")
                    except NotConnectedError as error:
                        say(f"{type(error).__name__} {error}")
                case ["refused"]:
                    say(sum(node.stats().refused.values()))
                case ["end", number]:
                    devices[int(number)].disconnect()
                    while not all(map(has_told_all, node.peers())):
                        await anyio.sleep(0.001)
                    say("ended")
                case ["fail"]:
                    raise SystemExit(7)
                case _:
                    return


if __name__ == "__main__":
    backend, *rest = sys.argv[1:]
    anyio.run(main, *rest, backend=backend)
