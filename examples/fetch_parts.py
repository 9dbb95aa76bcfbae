"""The servers of ``fetch_service.py``: a cache, a worker for each host, and subscribers.

None of them handles failures: one that cannot go on raises, its callers are
told, and its supervisor starts another.
"""

import ssl
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import anyio
import httpx
from fetch_audit import Books

from backplane.otp import (
    CallTimeoutError,
    GenServer,
    Groups,
    Registry,
    ServerRef,
    on_call,
    on_cast,
    send_every,
)

NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # otherwise each client reads all certificates
FAILURES: dict[type[httpx.RequestError], str] = {
    httpx.ReadError: "reset",
    httpx.RemoteProtocolError: "short",
}


@dataclass(frozen=True, slots=True)
class Page:
    """What a host answered."""

    host: str
    path: str
    status: int
    text: str


@dataclass(frozen=True, slots=True)
class Fetched:
    """To subscribers: a fetch is finished."""

    id: int
    host: str
    path: str
    status: int


class Sweep:
    """To the cache, from its timer: forget what is too old."""


class Cache(GenServer):
    """Keeps pages for some time."""

    def init(self, ttl: float) -> None:
        self.ttl = ttl
        self.pages: dict[tuple[str, str], tuple[float, Page]] = {}
        self.hits = self.misses = 0
        send_every(ttl, self.process.pid, Sweep())

    @on_call
    def get(self, host: str, path: str) -> Page | None:
        """The page, unless it is not known, or too old."""
        expires, page = self.pages.get((host, path), (0.0, None))
        if page is None or expires < time.monotonic():
            self.misses += 1
            return None
        self.hits += 1
        return page

    @on_cast
    def put(self, page: Page) -> None:
        self.pages[page.host, page.path] = (time.monotonic() + self.ttl, page)

    @on_call
    def counts(self) -> dict[str, int]:
        return {"hit": self.hits, "miss": self.misses}

    def handle_info(self, message: Sweep) -> None:
        now = time.monotonic()
        self.pages = {key: kept for key, kept in self.pages.items() if kept[0] >= now}


class Subscriber(GenServer):
    """Hears of each fetch that is finished."""

    def init(self, groups: Groups) -> None:
        self.ids: list[int] = []
        groups.join(Fetched, self.process.pid)

    def handle_info(self, message: Fetched) -> None:
        self.ids.append(message.id)

    @on_call
    def heard(self) -> list[int]:
        return self.ids


class Site:
    """What workers share: where hosts are, and whom to tell."""

    def __init__(self, urls: dict[str, str], books: Books) -> None:
        self.urls = urls
        self.books = books
        self.workers: Registry[str] = Registry("workers")
        self.fetched = Groups("fetched")
        self.cache = ServerRef("cache", Cache)

    def worker(self, host: str) -> ServerRef["Worker"]:
        """Whoever is the host's worker at the time."""
        return ServerRef(self.workers.via(host), Worker)

    async def look_up(self, host: str, path: str, until: float) -> Page | None:
        """Ask the cache, and note what it said."""
        lookups = self.books.lookups
        lookups["asked"] += 1
        try:
            page = await self.cache.within(until - time.monotonic()).call(Cache.get, host, path)
        except BaseException:
            lookups["unanswered"] += 1
            raise
        lookups["miss" if page is None else "hit"] += 1
        return page


class Worker(GenServer):
    """Fetches from one host, one page at a time, as fast as its token bucket allows.

    A connection that breaks ends it. The next one has new connections, and begins
    with an empty bucket, since nobody knows how many tokens were spent.
    """

    def init(self, host: str, site: Site) -> None:
        self.process.trap_exit = True  # a stop waits for the fetch that is under way
        self.host, self.site = host, site
        self.tokens, self.since = 0.0, time.monotonic()
        self.http = httpx.AsyncClient(
            base_url=site.urls[host], verify=NO_TLS, timeout=None, trust_env=False
        )
        site.workers.register(host)

    @on_call
    async def fetch(self, path: str, until: float) -> Page | None:
        """The page, from the cache if it has got it meanwhile; None if it is too late."""
        with anyio.move_on_after(until - time.monotonic()), suppress(CallTimeoutError):
            page = await self.site.look_up(self.host, path, until)
            if page is None:
                await self.take_token()
                page = await self.download(path, until)
            return page
        return None

    async def take_token(self) -> None:
        limits = self.site.books.limits
        while True:
            now = time.monotonic()
            self.tokens = min(limits.burst, self.tokens + (now - self.since) * limits.rate)
            self.since = now
            if self.tokens >= 1:
                self.tokens -= 1
                return
            await anyio.sleep((1 - self.tokens) / limits.rate)

    async def download(self, path: str, until: float) -> Page:
        fetch = self.site.books.begin(self.host, path, until)
        try:
            response = await self.http.get(path, headers={"X-Request": str(fetch.id)})
            fetch.outcome = str(response.status_code)
        except httpx.RequestError as error:
            fetch.outcome = FAILURES.get(type(error), repr(error))
            raise
        finally:
            fetch.ended = time.monotonic()
        page = Page(self.host, path, response.status_code, response.text)
        if page.status == 200:
            self.site.cache.cast(Cache.put, page)
        news = Fetched(fetch.id, self.host, path, page.status)
        self.site.books.published[fetch.id] = self.site.fetched.publish(Fetched, news)
        return page

    async def terminate(self, reason: Any) -> None:
        await self.http.aclose()
