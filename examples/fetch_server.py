"""What ``fetch_service.py`` fetches from: real HTTP servers that misbehave, in threads.

Each host answers as its deck of cards says, which is shuffled anew when it is
empty: so each kind comes as often, in another order. It notes each request as
it arrives. It knows nothing of who asks.
"""

import socket
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from random import Random

DECK = ["200"] * 8 + ["slow", "500", "reset", "short"]
SLOW = (0.2, 0.9)  # seconds: the least and the most


@dataclass(frozen=True)
class Hit:
    """A request that has reached a host."""

    host: str
    id: int  # as the request says
    path: str
    status: str  # how it is answered: 200, 500, "reset" in mid-body, "short" of what was promised
    at: float  # on the clock time.monotonic


class Host(ThreadingHTTPServer):
    """A web server on a port of its own."""

    daemon_threads = False  # those that answer are waited for

    def __init__(self, name: str, seed: object) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.name = name
        self.random = Random(f"{seed} {name}")
        self.deck: list[str] = []
        self.hits: list[Hit] = []
        self.lock = threading.Lock()
        self.closing = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def note(self, id: int, path: str) -> tuple[str, float]:
        """Note a request; return how to answer it, and after how many seconds."""
        with self.lock:
            if not self.deck:
                self.deck = self.random.sample(DECK, len(DECK))
            kind = self.deck.pop()
            seconds = self.random.uniform(*SLOW) if kind == "slow" else 0.0
            status = "200" if kind == "slow" else kind
            self.hits.append(Hit(self.name, id, path, status, time.monotonic()))
        return status, seconds

    def handle_error(self, request: object, client_address: object) -> None:
        """Tell of no client that has gone while it was answered."""


class Answer(BaseHTTPRequestHandler):
    """The answers to one connection."""

    protocol_version = "HTTP/1.1"
    timeout = 30.0

    def do_GET(self) -> None:
        assert isinstance(self.server, Host)
        number = int(self.headers["X-Request"])
        status, seconds = self.server.note(number, self.path)
        self.server.closing.wait(seconds)
        body = f"{self.server.name}{self.path} {number}\n".encode() * 50
        self.send_response(500 if status == "500" else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body if status in ("200", "500") else body[: len(body) // 2])
        if status == "short":
            self.close_connection = True
        elif status == "reset":
            self.reset()

    def reset(self) -> None:
        """Close the connection with a reset instead of an end."""
        self.close_connection = True
        raw = socket.socket(fileno=self.connection.detach())
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raw.close()

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""


@contextmanager
def serving(count: int, seed: object) -> Iterator[Sequence[Host]]:
    """Run that many hosts in a block; their notes can be read after it."""
    with ExitStack() as stack:
        hosts = [Host(f"host-{number}", seed) for number in range(1, count + 1)]
        for host in hosts:
            stack.callback(host.server_close)
            thread = threading.Thread(target=host.serve_forever, args=(0.05,), name=host.name)
            thread.start()
            stack.callback(thread.join)
            stack.callback(host.shutdown)
            stack.callback(host.closing.set)
        yield hosts
