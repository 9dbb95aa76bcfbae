"""The books of ``fetch_service.py``: what its parts noted against what the web servers noted.

It is plain and knows nothing of the service. All times are of ``time.monotonic``.
"""

import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from operator import attrgetter

from fetch_server import Hit

LATE = 0.5  # seconds that a busy machine may be late, beside what it is known to have lost


@dataclass
class Fetch:
    """A request that a worker has made."""

    id: int
    host: str
    path: str
    until: float  # when its caller gives up
    sent: float
    ended: float = 0.0
    outcome: str = "abandoned"  # or 200, 500, "reset", "short"


@dataclass
class Limits:
    """What the service has promised to keep to."""

    rate: float  # requests a second and host
    burst: int  # so many at once
    ttl: float  # seconds that the cache keeps a page


@dataclass
class Books:
    """What the parts of the service noted."""

    limits: Limits
    fetches: list[Fetch] = field(default_factory=list)
    published: dict[int, int] = field(default_factory=dict)  # by id: how many were told
    heard: dict[str, list[int]] = field(default_factory=dict)  # by subscriber: ids
    lookups: Counter[str] = field(default_factory=Counter)  # asked, hit, miss, unanswered
    cache: Counter[str] = field(default_factory=Counter)  # hit, miss: the cache's own count
    answers: Counter[str] = field(default_factory=Counter)  # that clients got
    retries: Counter[str] = field(default_factory=Counter)  # of clients: why
    waits: list[tuple[float, float]] = field(default_factory=list)  # in vain: patience, seconds
    problems: list[str] = field(default_factory=list)  # found by the parts themselves
    stood: float = 0.0  # seconds for which the whole machine stood still, at the worst time

    def begin(self, host: str, path: str, until: float) -> Fetch:
        """Note a request that is about to be sent."""
        fetch = Fetch(len(self.fetches), host, path, until, time.monotonic())
        self.fetches.append(fetch)
        return fetch


@contextmanager
def noting_standstills(books: Books, interval: float = 0.05) -> Iterator[None]:
    """See from a thread how late the machine is, whatever the event loop does."""
    over = threading.Event()

    def look() -> None:
        began = time.monotonic()
        while not over.wait(interval):
            now = time.monotonic()
            books.stood = max(books.stood, now - began - interval)
            began = now

    thread = threading.Thread(target=look, name="standstills")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@dataclass
class Audit:
    """Both sides, and what is wrong between them."""

    served: Counter[tuple[str, str]]  # by host and status
    counted: Counter[tuple[str, str]]  # the same as the workers know it
    abandoned: int
    reached: int  # abandoned requests that reached their server
    fastest: int  # the most requests that reached a host within a second
    problems: list[str]

    @property
    def agrees(self) -> bool:
        return not self.problems


def audit(books: Books, hits: Sequence[Hit]) -> Audit:
    """Compare both sides."""
    abandoned = {fetch.id for fetch in books.fetches if fetch.outcome == "abandoned"}
    served = Counter((hit.host, hit.status) for hit in hits if hit.id not in abandoned)
    counted = Counter((f.host, f.outcome) for f in books.fetches if f.id not in abandoned)
    problems = [
        f"{host} answered {served[host, status]} x {status}, "
        f"and its workers counted {counted[host, status]}"
        for host, status in sorted(served.keys() | counted.keys())
        if served[host, status] != counted[host, status]
    ]
    for check in check_requests, check_rates:
        problems += check(books, hits)
    for own_check in check_freshness, check_lookups, check_subscribers, check_deadlines:
        problems += own_check(books)
    reached = sum(hit.id in abandoned for hit in hits)
    problems = books.problems + problems
    return Audit(served, counted, len(abandoned), reached, fastest(hits), problems)


def check_requests(books: Books, hits: Sequence[Hit]) -> Iterable[str]:
    """Each request that was answered arrived once, as it was sent."""
    times = Counter(hit.id for hit in hits)
    fetches = {fetch.id: fetch for fetch in books.fetches}
    for fetch in books.fetches:
        if times[fetch.id] > 1 or (fetch.outcome != "abandoned" and not times[fetch.id]):
            yield f"request {fetch.id} reached {fetch.host} {times[fetch.id]} times"
    for hit in hits:
        found = fetches.get(hit.id)
        if found is None or (found.host, found.path) != (hit.host, hit.path):
            yield f"request {hit.id} for {hit.path} reached {hit.host}, and nobody sent it so"
        elif found.outcome not in (hit.status, "abandoned"):
            yield f"request {hit.id} was answered {hit.status}, and taken for {found.outcome}"
        elif hit.at < found.sent:
            yield f"request {hit.id} arrived before it was sent"


def check_rates(books: Books, hits: Sequence[Hit]) -> Iterable[str]:
    """No host was asked faster than allowed, by either clock.

    When a request was sent is known exactly. When it arrived is later, by a time
    that differs, so that requests may arrive closer together than they were sent.
    """
    sent, arrived = defaultdict(list), defaultdict(list)
    for fetch in books.fetches:
        sent[fetch.host].append(fetch.sent)
    for hit in hits:
        arrived[hit.host].append(hit.at)
    for host, times in sent.items():
        if not keeps_to(times, books.limits, 1e-3):
            yield f"{host} was sent requests faster than allowed"
    for host, times in arrived.items():
        if not keeps_to(times, books.limits, LATE):
            yield f"{host} was fetched from faster than allowed"


def keeps_to(times: Iterable[float], limits: Limits, late: float) -> bool:
    """Whether a bucket that is full at first has a token at each of these times."""
    tokens, last = float(limits.burst), 0.0
    for at in sorted(times):
        tokens = min(limits.burst, tokens + (at - last) * limits.rate) - 1
        last = at
        if tokens < -limits.rate * late:
            return False
    return True


def fastest(hits: Sequence[Hit]) -> int:
    """The most requests that reached one host within a second."""
    recent: defaultdict[str, deque[float]] = defaultdict(deque)
    most = 0
    for hit in sorted(hits, key=attrgetter("at")):
        times = recent[hit.host]
        times.append(hit.at)
        while times[0] <= hit.at - 1:
            times.popleft()
        most = max(most, len(times))
    return most


def check_freshness(books: Books) -> Iterable[str]:
    """What the cache had was not fetched."""
    pages = defaultdict(list)
    for fetch in books.fetches:
        pages[fetch.host, fetch.path].append(fetch)
    for (host, path), fetches in pages.items():
        for first, second in pairwise(fetches):
            if first.outcome == "200" and second.sent < first.ended + books.limits.ttl:
                yield f"{host}{path} was fetched again after {second.sent - first.ended:.3f} s"


def check_lookups(books: Books) -> Iterable[str]:
    """Hits and misses are all calls, and the same on both sides."""
    asked, unanswered = books.lookups["asked"], books.lookups["unanswered"]
    for side, counts in ("callers", books.lookups), ("the cache", books.cache):
        total = counts["hit"] + counts["miss"]
        # What nobody waits for any longer may have been looked up or not.
        if not asked - unanswered <= total <= asked - unanswered * (side == "callers"):
            yield f"the cache was called {asked} times; {side} know of {total} hits and misses"
    for kind in "hit", "miss":
        if not 0 <= books.cache[kind] - books.lookups[kind] <= unanswered:
            yield f"{kind}: {books.cache[kind]} in the cache, {books.lookups[kind]} at callers"


def check_subscribers(books: Books) -> Iterable[str]:
    """Each subscriber heard of each fetch that was finished, once, in order."""
    finished = [fetch.id for fetch in books.fetches if fetch.outcome in ("200", "500")]
    if sorted(books.published) != finished:
        yield f"{len(finished)} fetches were finished, and {len(books.published)} published"
    for number, count in books.published.items():
        if count != len(books.heard):
            yield f"fetch {number} was told to {count} of {len(books.heard)} subscribers"
    for name, ids in books.heard.items():
        if ids != list(books.published):
            missed, extra = Counter(books.published.keys()), Counter(ids)
            yield (
                f"{name} missed {(missed - extra).total()} fetches, "
                f"and heard of {(extra - missed).total()} too often"
            )


def check_deadlines(books: Books) -> Iterable[str]:
    """Nobody waited longer than he would, and no fetch went on for longer than that."""
    allowed = LATE + books.stood
    for patience, seconds in books.waits:
        if not patience - 0.01 <= seconds <= patience + allowed:
            yield f"a client that waits for {patience:g} s waited for {seconds:.3f} s"
    for fetch in books.fetches:
        if fetch.ended > fetch.until + allowed:
            late = fetch.ended - fetch.until
            yield f"request {fetch.id} went on for {late:.3f} s after its caller had left"
