"""The clients of ``line_service.py``: a process full of them, each a supervised child.

A client that loses its connection, or waits too long, simply fails. Its
supervisor starts it again, and what it has not been told is done is still on its
desk: that is the whole of reconnecting and retrying. What is sent and what is
acknowledged is logged at once, line by line, so that even a killed process has
kept its books. It ends after a time, or when its standard input does.
"""

import argparse
import os
import random
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import anyio
from anyio.streams.buffered import BufferedByteReceiveStream

from backplane import Device, Failed, Line, PowerOffCrash
from backplane.supervisor import (
    AutoShutdown,
    Backoff,
    ChildExited,
    ChildSpec,
    Event,
    Restart,
    Supervisor,
)

PATIENCE = 4.0  # seconds to wait for an answer, longer than any watchdog of the service


class Log:
    """What happened, on disk as soon as the operating system has it."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("ab", buffering=0)

    def __call__(self, *words: object) -> None:
        self.file.write((" ".join(map(str, words)) + "\n").encode())

    def on_event(self, event: Event) -> None:
        """A subscriber: a client that failed comes back, on a new connection."""
        if isinstance(event, ChildExited) and isinstance(event.fault, Failed):
            self("lost", type(event.fault.exception).__name__)


class Request:
    """What lies on a client's desk until it is answered."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tries = 0
        self.since = time.perf_counter()


class Client:
    """One client. It outlives its connections."""

    def __init__(self, name: str, port: int, until: float, log: Log) -> None:
        self.name = name
        self.port = port
        self.until = until
        self.log = log
        self.random = random.Random(name)
        self.count = 0
        self.request: Request | None = None
        self.seen: dict[str, int] = {}  # by key: the highest total that it was told

    async def run(self) -> None:
        """The child: ask and hear the answer, until time is up and nothing is open."""
        async with await anyio.connect_tcp("127.0.0.1", self.port) as stream:
            answers = BufferedByteReceiveStream(stream)
            while request := self.request or self.next_request():
                self.request = request
                if request.tries:
                    self.log("again", request.text)
                request.tries += 1
                with anyio.fail_after(PATIENCE):
                    await stream.send(f"{request.text}\n".encode())
                    answer = await answers.receive_until(b"\n", 200)
                self.take(request, answer.decode())
                self.request = None

    def next_request(self) -> Request | None:
        if time.monotonic() >= self.until:
            return None
        key = f"k{self.random.randrange(50)}"
        if self.random.random() < 0.1:
            return Request(f"GET {key}")
        self.count += 1
        entry_id, n = f"{self.name}-{self.count}", self.random.randint(1, 9)
        self.log("sent", entry_id, key, n)
        return Request(f"ADD {key} {n} {entry_id}")

    def take(self, request: Request, answer: str) -> None:
        """Enter an answer into the books; one that cannot be true is a problem."""
        match request.text.split(), answer.split():
            case ["ADD", key, _, id], ["OK", same, total] if same == id:
                entry: tuple[object, ...] = ("acked", id, total)
            case ["GET", key], ["OK", same, total] if same == key:
                entry = ("read", key, total)
            case _:
                self.log("wrong", f"{answer!r} came in answer to {request.text!r}")
                return
        seen = self.seen.get(key, 0)
        if int(total) < seen:
            self.log("wrong", f"{key} is {total} after it was {seen}")
        self.seen[key] = max(int(total), seen)
        self.log(*entry, f"{time.perf_counter() - request.since:.6f}")


async def run(options: argparse.Namespace) -> None:
    log, until = Log(options.log), time.monotonic() + options.seconds
    names = [f"{options.name}.{number}" for number in range(options.clients)]
    supervisor = Supervisor(
        [
            ChildSpec(
                name,
                Client(name, options.port, until, log).run,
                restart=Restart.TRANSIENT,
                significant=True,
            )
            for name in names
        ],
        auto_shutdown=AutoShutdown.ALL_SIGNIFICANT,
        backoff=Backoff(initial=0.02, maximum=0.5, reset_after=1),
        max_restarts=1000 * options.clients,
        name="clients",
        subscribers=[log.on_event],
    )
    device = Device("clients")
    threading.Thread(target=shut_down_at_end_of_input, args=(device.line(),), daemon=True).start()
    with suppress(PowerOffCrash):
        await device.manage(supervisor.run)
    log.file.close()


def shut_down_at_end_of_input(line: Line) -> None:
    """In a thread of its own: whoever started this closes its input to end it."""
    os.read(sys.stdin.fileno(), 1)
    line.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description="Load a line service.")
    add = parser.add_argument
    add("port", type=int)
    add("log", type=Path)
    add("--name", default="c")
    add("--clients", type=int, default=40, metavar="N")
    add("--seconds", type=float, default=8)
    add("--loop", choices=["asyncio", "trio"], default="asyncio")
    options = parser.parse_args()
    anyio.run(run, options, backend=options.loop)


if __name__ == "__main__":
    main()
