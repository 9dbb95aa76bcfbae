"""The parts of ``line_service.py`` that talk over sockets; each is a supervised child.

None of them handles failures: a part that cannot go on raises, and its
supervisor knows what to do.
"""

import sys
from pathlib import Path
from subprocess import PIPE

import anyio
from anyio.abc import SocketAttribute, SocketListener, SocketStream, TaskStatus
from anyio.streams.buffered import BufferedByteReceiveStream
from line_journal import BEAT, Entry, Journal
from line_monkey import Traps

from backplane.supervisor import ChildSpec, DynamicSupervisor, Restart, alive

PATIENCE = 3.0  # seconds of silence from a connection: more than those of the flusher it waits for
CLIENTS = Path(__file__).with_name("line_clients.py")
GONE = (anyio.IncompleteRead, anyio.BrokenResourceError, anyio.ClosedResourceError)


class Server:
    """Accepts connections, each a child of ``connections``, and answers requests."""

    def __init__(
        self,
        listener: SocketListener,
        journal: Journal,
        connections: DynamicSupervisor,
        traps: Traps,
    ) -> None:
        self.listener = listener
        self.journal = journal
        self.connections = connections
        self.traps = traps

    async def accept(self) -> None:
        """The acceptor. The listening socket outlives it, so that nobody else takes the port."""
        raw_socket = self.listener.extra(SocketAttribute.raw_socket)
        while True:
            await anyio.wait_readable(raw_socket)  # on asyncio, accept itself does not end neatly
            stream = await self.listener.accept()
            spec = ChildSpec(
                "connection", self.serve, (stream,), restart=Restart.TEMPORARY, watchdog=PATIENCE
            )
            try:
                await self.traps.pass_by("acceptor", "with a new connection")
                await self.connections.start_child(spec)
            except BaseException:
                await anyio.aclose_forcefully(stream)
                raise

    async def serve(self, stream: SocketStream, *, task_status: TaskStatus[None]) -> None:
        """A connection. It ends well when its client has gone."""
        async with stream:
            task_status.started()  # one that is stopped before leaves the stream to the acceptor
            requests = BufferedByteReceiveStream(stream)
            while line := await self.next_line(requests):
                await self.traps.pass_by("connection", "before its request")
                answer = f"{await self.answer(line)}\n".encode()
                await self.traps.pass_by("connection", "before its answer")
                if self.traps.springs("connection", "in mid-answer"):
                    await stream.send(answer[:-3])
                    raise ConnectionAbortedError("cut off in mid-answer")
                await stream.send(answer)

    async def next_line(self, requests: BufferedByteReceiveStream) -> str | None:
        while True:
            alive()
            with anyio.move_on_after(BEAT):
                try:
                    return (await requests.receive_until(b"\n", 200)).decode()
                except GONE:
                    return None

    async def answer(self, line: str) -> str:
        match line.split(" "):
            case ["ADD", key, n, id]:
                return f"OK {id} {await self.journal.add(Entry(id, key, int(n)))}"
            case ["GET", key]:
                return f"OK {key} {self.journal.totals[key]}"
            case ["STAT"]:
                return f"OK {len(self.journal.answers)} {self.connections.count_children().active}"
            case _:
                return "ERROR say ADD key n id, GET key, or STAT"


class Poller:
    """Asks the service how it is, as a stranger would: over a socket."""

    def __init__(self, port: int, traps: Traps) -> None:
        self.port = port
        self.traps = traps
        self.busy = anyio.Event()
        self.entries = 0
        self.connections = 0

    async def poll(self) -> None:
        """The child."""
        async with await anyio.connect_tcp("127.0.0.1", self.port) as stream:
            answers = BufferedByteReceiveStream(stream)
            while True:
                alive()
                await self.traps.pass_by("poller", "between two polls")
                await stream.send(b"STAT\n")
                _, entries, connections = (await answers.receive_until(b"\n", 200)).split()
                self.entries, self.connections = int(entries), int(connections)
                if self.connections > 1:  # there are clients, too
                    self.busy.set()
                await anyio.sleep(BEAT)


class Load:
    """The clients: an operating-system process, started again with a log of its own if it dies."""

    def __init__(self, directory: Path, port: int, clients: int, seconds: float, loop: str) -> None:
        self.directory = directory
        self.arguments = [str(port), "--clients", str(clients), "--loop", loop]
        self.until = anyio.current_time() + seconds
        self.logs: list[Path] = []
        self.process: anyio.abc.Process | None = None

    async def run(self) -> None:
        """The child. It ends well when the clients have."""
        name = f"c{len(self.logs)}"
        log = self.directory / f"clients-{name}.log"
        left = max(self.until - anyio.current_time(), 0.5)
        self.logs.append(log)
        log.touch()
        command = [sys.executable, str(CLIENTS), *self.arguments, str(log), "--name", name]
        async with await anyio.open_process(
            [*command, "--seconds", str(left)],
            stdin=PIPE,
            stdout=None,
            stderr=None,
            start_new_session=True,  # so that Ctrl-C is heard here alone
        ) as self.process:
            try:
                code = await self.process.wait()
            finally:  # if it was not its own end, closing its input asks for that
                assert self.process.stdin is not None
                with anyio.move_on_after(3, shield=True):
                    await self.process.stdin.aclose()
                    await self.process.wait()
        if code:
            raise ChildProcessError(f"the clients ended with code {code}")

    async def kill(self) -> bool:
        """Send SIGKILL to the process, as the kernel does when memory is short."""
        if self.process is None or self.process.returncode is not None:
            return False
        self.process.kill()
        return True
