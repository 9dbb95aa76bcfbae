"""A TCP service that is killed all the time, part by part, and loses no acknowledged request.

It adds numbers up: ``ADD key n id`` is answered ``OK id total`` once it is on
disk, ``GET key`` is answered ``OK key total``. Clients in a process of their own
ask as fast as they can, reconnect and retry. A monkey kills connections,
acceptor, flusher, poller and clients meanwhile, and supervisors mend it all::

    line service
    ├─ store              if one of these fails, those below it start again, too
    │  ├─ flusher         writes the journal, many requests at a time
    │  ├─ connections     a child for each; one that dies is its client's matter
    │  └─ acceptor
    ├─ poller             asks over a socket how the service is
    ├─ monkey
    ├─ screen
    └─ clients            when they are done, all is

In the end the journal is read once more, by other code, and compared with what
the clients wrote down themselves. Exit code 0 says that both agree.

    python examples/line_service.py            # look at it on a terminal
    python examples/line_service.py --loop trio --seconds 60 --kills 20

Prints:
    requests         16359 = 14754 ADD + 1605 GET
    retried          268
    reconnects       268: 266 x IncompleteRead, 2 x BrokenResourceError
    latency          median 14.1 ms, p99 137.6 ms
    kills            26
      acceptor       3: 2 x raises with a new connection, 1 x is terminated
      connection     12: 4 x raises in mid-answer, 3 x raises before its answer, 2 x raises before
                     its request, 2 x is terminated, 1 x hangs before its answer
      poller         2: 2 x raises between two polls
      flusher        7: 4 x raises with a batch, 2 x raises in mid-write, 1 x is shut down
      clients        2: 2 x are killed with SIGKILL
    restarts         34
      acceptor       10: 8 x was stopped, 2 x MonkeyError
      poller         8: 6 x IncompleteRead, 2 x MonkeyError
      flusher        7: 6 x MonkeyError, 1 x was stopped
      connections    7: 7 x was stopped
      clients        2: 2 x ChildProcessError
    connections lost 272: 263 x was stopped, 5 x MonkeyError, 4 x ConnectionAbortedError
    acknowledged     14681 ADD, as the clients know; 73 not
    journal          14753 entries, 14681 of them acknowledged
    torn ends        2 cut off
    accounting       agrees
"""

import argparse
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import anyio
from anyio.abc import SocketAttribute, SocketListener
from line_audit import audit
from line_journal import Journal
from line_monkey import Monkey, Traps
from line_parts import Load, Poller, Server
from line_view import Screen, Tally, summary

from backplane.supervisor import (
    AutoShutdown,
    Backoff,
    Budget,
    ChildNotFoundError,
    ChildRestartingError,
    ChildRunningError,
    ChildSpec,
    DynamicSupervisor,
    MaxRestartsError,
    NotRunningError,
    Restart,
    Strategy,
    Supervisor,
    stop_on_signals,
)


class Service:
    """All parts, and the tree that they are in."""

    def __init__(
        self, options: argparse.Namespace, directory: Path, listener: SocketListener
    ) -> None:
        port = listener.extra(SocketAttribute.local_port)
        self.traps, self.tally = Traps(), Tally()
        self.seconds: float = options.seconds
        self.budget = 10 + int(20 * options.kills)
        self.journal = Journal(directory / "journal", self.traps)
        self.journal.path.touch()
        self.connections = DynamicSupervisor(name="connections", subscribers=[self.tally])
        self.server = Server(listener, self.journal, self.connections, self.traps)
        self.poller = Poller(port, self.traps)
        self.load = Load(directory, port, options.clients, options.seconds, options.loop)
        self.screen = Screen(self.poller, self.traps, self.tally)
        self.monkey = Monkey(options.kills, options.seed, self.traps)
        self.monkey.add("connection", "is terminated", 3, self.terminate_connection)
        self.monkey.add("acceptor", "is terminated", 1, self.terminate_acceptor)
        self.monkey.add("flusher", "is shut down", 1, self.shut_flusher_down)
        self.monkey.add("clients", "are killed with SIGKILL", 0.3, self.load.kill)
        self.store = self.grow_store()
        self.top = self.screen.supervisor = self.grow_top()

    def grow_store(self) -> Supervisor:
        return Supervisor(
            [
                ChildSpec("flusher", self.journal.flush, watchdog=1),
                self.connections,
                ChildSpec("acceptor", self.server.accept),
            ],
            strategy=Strategy.REST_FOR_ONE,
            max_restarts=self.budget,
            name="store",
            subscribers=[self.tally],
        )

    def grow_top(self) -> Supervisor:
        often = Budget(self.budget)  # of its own, so that the store has that of the supervisor
        soon = Backoff(initial=0.05, maximum=0.5, reset_after=1)
        rage = partial(self.monkey.rage, self.poller.busy, 0.9 * self.seconds)
        return Supervisor(
            [
                self.store,
                ChildSpec("poller", self.poller.poll, watchdog=2, backoff=soon, budget=often),
                ChildSpec("monkey", rage, restart=Restart.TRANSIENT),
                ChildSpec("screen", self.screen.show),
                ChildSpec(
                    "clients",
                    self.load.run,
                    restart=Restart.TRANSIENT,
                    significant=True,
                    budget=often,
                ),
            ],
            auto_shutdown=AutoShutdown.ANY_SIGNIFICANT,
            name="line service",
            subscribers=[self.tally],
        )

    async def terminate_connection(self) -> bool:
        """Have a connection stopped. It may have ended while the monkey chose it."""
        with suppress(NotRunningError, ChildNotFoundError):
            if children := self.connections.which_children():
                await self.connections.terminate_child(self.monkey.random.choice(children))
                return True
        return False

    async def terminate_acceptor(self) -> bool:
        """Have the acceptor stopped, and started again: what is terminated stays down."""
        with suppress(NotRunningError):
            await self.store.terminate_child("acceptor")
            with suppress(ChildRunningError, ChildRestartingError):  # with its group, just now
                await self.store.restart_child("acceptor")
            return True
        return False

    async def shut_flusher_down(self) -> bool:
        """Ask the flusher to end, wherever it stands. Unlike one terminated, it is restarted."""
        with suppress(NotRunningError):
            line = self.store.which_child("flusher").line
            return line is not None and line.shutdown()
        return False


async def run(options: argparse.Namespace, directory: Path) -> Service:
    sockets = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=options.port)
    async with sockets:
        (listener,) = sockets.listeners
        assert isinstance(listener, SocketListener)
        service = Service(options, directory, listener)
        with suppress(MaxRestartsError):  # the summary says so
            async with stop_on_signals(service.top), service.top:
                await service.top.wait()
    return service


def main() -> int:
    parser = argparse.ArgumentParser(description="Serve lines, be killed, and lose nothing.")
    add = parser.add_argument
    add("--seconds", type=float, default=8, metavar="S")
    add("--clients", type=int, default=40, metavar="N")
    add("--kills", type=float, default=4, metavar="N", help="a second, on average")
    add("--seed", type=int, help="of what the monkey chooses")
    add("--loop", choices=["asyncio", "trio"], default="asyncio")
    add("--port", type=int, default=0, help="any free one by default")
    add("--directory", type=Path, help="keep the journal and the clients' logs there")
    options = parser.parse_args()
    if options.directory and (options.directory / "journal").exists():
        parser.error(f"--directory {options.directory} holds a journal already")
    for option, least in ("seconds", 0.1), ("clients", 1), ("kills", 0):
        if not vars(options)[option] >= least:
            parser.error(f"--{option} must be at least {least}, not {vars(options)[option]}")

    with TemporaryDirectory() as temporary:
        directory = options.directory or Path(temporary)
        directory.mkdir(parents=True, exist_ok=True)
        service = anyio.run(run, options, directory, backend=options.loop)
        result = audit(service.journal.path, service.load.logs)
    print(summary(result, service.traps, service.tally, service.journal.cuts))
    return 0 if result.agrees and not service.tally.gave_up else 1


if __name__ == "__main__":
    sys.exit(main())
