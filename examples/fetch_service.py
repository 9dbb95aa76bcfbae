"""A fetch service on servers as in Erlang/OTP: limited in rate, cached, supervised, and audited.

Clients ask for pages of web servers that misbehave: slow answers, 500s,
connections that are reset in mid-body, and bodies that are shorter than was
said. Each host has one worker, which is started when it is first asked for. A
connection that breaks ends the worker for real; its callers hear so and ask
again, and its supervisor starts another after a while::

    fetch service
    ├─ cache              keeps each page for a second
    ├─ reader-1, ...      subscribers, who are told of each fetch that is finished
    └─ workers
       ├─ host-1          started on demand, found by key, each with a token bucket
       └─ ...

Some clients wait for half a second at most, and no fetch goes on for longer than
its client waits. In the end the notes of the service are compared with those
of the web servers. Exit code 0 says that both agree.

    python examples/fetch_service.py                 # look at it on a terminal
    python examples/fetch_service.py --loop trio --seconds 60 --hosts 9

Prints:
    seed         7
    answers      527: 438 x 200, 24 x 500, 56 x CallTimeoutError, 9 x TimeoutError
    retries      276: 125 x ReadError, 110 x RemoteProtocolError, 41 x noproc
    cache        1155 calls = 225 hit + 930 miss + 0 unanswered
    requests     297 reached the hosts, 11 of them were abandoned
      host-1     71: 53 x 200, 6 x 500, 6 x reset, 6 x short
      host-2     74: 55 x 200, 6 x 500, 7 x reset, 6 x short
      host-3     69: 51 x 200, 6 x 500, 6 x reset, 6 x short
      host-4     72: 54 x 200, 6 x 500, 6 x reset, 6 x short
    fetches      297 counted by workers, 11 abandoned
      host-1     71: 53 x 200, 6 x 500, 6 x reset, 6 x short
      host-2     74: 55 x 200, 6 x 500, 7 x reset, 6 x short
      host-3     69: 51 x 200, 6 x 500, 6 x reset, 6 x short
      host-4     72: 54 x 200, 6 x 500, 6 x reset, 6 x short
    rate         15 at most to a host within a second, 12 + a burst of 4 allowed
    subscribers  3 heard of 237 finished fetches
    crashes      49: 25 x ReadError, 24 x RemoteProtocolError
    restarts     49: 12 x host-1, 13 x host-2, 12 x host-3, 12 x host-4, after 38 ms on average
    accounting   agrees
"""

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from random import Random, randrange

import anyio
from fetch_audit import Audit, Books, Limits, audit, noting_standstills
from fetch_parts import Cache, Page, Site, Subscriber, Worker
from fetch_server import Hit, Host, serving
from fetch_view import Tally, show, summary

from backplane.otp import NOPROC, Registry, ServerDownError, ServerRef, child_spec
from backplane.supervisor import Backoff, Budget, ChildState, DynamicSupervisor, Supervisor

LIMITS = Limits(rate=12, burst=4, ttl=1)
SOON = Backoff(initial=0.02, maximum=0.3, reset_after=1)
PAGES = 25
PATIENCE = (0.5, 3.0)
READERS = ("reader-1", "reader-2", "reader-3")


class Service:
    """All parts, and the tree that they are in."""

    def __init__(self, urls: dict[str, str], options: argparse.Namespace) -> None:
        self.seconds: float = options.seconds
        self.clients: int = options.clients
        self.seed: object = options.seed
        self.books = Books(LIMITS)
        self.site = Site(urls, self.books)
        self.tally = Tally()
        self.often = Budget(10 + int(LIMITS.rate * self.seconds), self.seconds)
        self.asked_for: set[str] = set()
        self.workers = DynamicSupervisor(name="workers", backoff=SOON, subscribers=[self.tally])
        self.top = Supervisor(
            [
                child_spec(Cache, LIMITS.ttl, name="cache"),
                *(child_spec(Subscriber, self.site.fetched, name=name) for name in READERS),
                self.workers,
            ],
            name="fetch service",
            subscribers=[self.tally],
        )

    async def run(self) -> None:
        """Serve clients for some time, then collect what all have noted."""
        # A registry is where the cache and the readers have their names.
        with Registry(), noting_standstills(self.books):
            async with self.top:
                async with anyio.create_task_group() as screen:
                    screen.start_soon(show, self.books, self.tally)
                    async with anyio.create_task_group() as clients:
                        for number in range(self.clients):
                            clients.start_soon(self.be_client, number)
                    screen.cancel_scope.cancel()
                with anyio.move_on_after(3):  # one that has just crashed is to come back
                    while any(  # noqa: ASYNC110 - no event to await
                        it.state is not ChildState.RUNNING for it in self.workers.which_children()
                    ):
                        await anyio.sleep(0.01)
                await self.top.terminate_child("workers")  # from here on nothing is fetched
                self.books.cache.update(await self.site.cache.call(Cache.counts))
                for name in READERS:
                    reader = ServerRef(name, Subscriber)
                    self.books.heard[name] = await reader.call(Subscriber.heard)

    async def be_client(self, number: int) -> None:
        """Ask for pages, some of them often, until the time is over."""
        random = Random(f"{self.seed} {number}")
        hosts = list(self.site.urls)
        end = time.monotonic() + self.seconds
        while (now := time.monotonic()) < end:
            host, path = random.choice(hosts), f"/{int(random.triangular(0, PAGES, 0))}"
            patience = random.choice(PATIENCE)
            try:
                page = await self.get(host, path, now + patience)
            except TimeoutError as error:  # a CallTimeoutError, if it is the call that took so long
                self.books.answers[type(error).__name__] += 1
                self.books.waits.append((patience, time.monotonic() - now))
            else:
                self.books.answers[str(page.status)] += 1
                if not page.text.startswith(f"{host}{path} "):
                    self.books.problems.append(f"{host}{path} is {page.text[:20]!r}")
            await anyio.sleep(random.uniform(0.01, 0.1))

    async def get(self, host: str, path: str, until: float) -> Page:
        """The page, from the cache or from the host's worker, however often that fails.

        Raises:
            TimeoutError: It has not come in time.
        """
        while (now := time.monotonic()) < until:
            page = await self.site.look_up(host, path, until)
            if page is not None:
                return page
            await self.start_worker(host)
            try:
                worker = self.site.worker(host).within(until - now)
                page = await worker.call(Worker.fetch, path, until)
            except ServerDownError as error:
                gone = error.reason is NOPROC  # the next is not there yet
                self.books.retries["noproc" if gone else type(error.reason).__name__] += 1
                await self.site.workers.await_name(host, max(until - time.monotonic(), 0))
            if page is not None:
                return page
        raise TimeoutError

    async def start_worker(self, host: str) -> None:
        """Have a worker started if this is the first that is asked of its host."""
        if host not in self.asked_for:
            self.asked_for.add(host)
            spec = child_spec(Worker, host, self.site, id=host, budget=self.often)
            await self.workers.start_child(spec)


async def run(options: argparse.Namespace, hosts: Sequence[Host]) -> Service:
    service = Service({host.name: host.url for host in hosts}, options)
    await service.run()
    return service


def main() -> int:
    parser = argparse.ArgumentParser(description="Fetch from servers that misbehave, by the book.")
    add = parser.add_argument
    add("--seconds", type=float, default=8, metavar="S")
    add("--hosts", type=int, default=4, metavar="N")
    add("--clients", type=int, default=24, metavar="N")
    add("--loop", choices=["asyncio", "trio"], default="asyncio")
    add("--seed", type=int, help="of what hosts and clients choose; any one by default")
    options = parser.parse_args()
    if options.seed is None:
        options.seed = randrange(1000)
    for option, least in ("seconds", 0.1), ("hosts", 1), ("clients", 1):
        if not least <= vars(options)[option] < 1e6:
            parser.error(f"--{option} must be at least {least}, not {vars(options)[option]}")

    logging.getLogger("backplane.otp").setLevel(logging.CRITICAL)  # the summary tells of crashes
    service = None
    with serving(options.hosts, options.seed) as hosts:
        try:
            service = anyio.run(run, options, hosts, backend=options.loop)
        except* KeyboardInterrupt:
            print("accounting   not made, stopped by Ctrl-C")
    if service is None:
        return 130
    hits: list[Hit] = [hit for host in hosts for hit in host.hits]
    result: Audit = audit(service.books, hits)
    print(summary(service.books, result, service.tally, options.seed))
    return 0 if result.agrees else 1


if __name__ == "__main__":
    sys.exit(main())
