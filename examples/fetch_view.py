"""What ``fetch_service.py`` shows: events counted, a line while it runs, and the summary."""

import sys
from collections import Counter
from statistics import fmean
from textwrap import fill

import anyio
from fetch_audit import Audit, Books

from backplane import Failed
from backplane.supervisor import (
    ChildExited,
    ChildStarted,
    ChildWaiting,
    Event,
    SupervisorGaveUp,
)


class Tally:
    """A subscriber that counts what happened to servers."""

    def __init__(self) -> None:
        self.crashes: Counter[str] = Counter()  # by cause
        self.restarts: Counter[str] = Counter()  # by host
        self.delays: list[float] = []
        self.gave_up: list[str] = []

    def __call__(self, event: Event) -> None:
        match event:
            case ChildExited(fault=Failed(exception=exception)):
                self.crashes[type(exception).__name__] += 1
            case ChildStarted(child=child, restarts=restarts) if restarts:
                self.restarts[child] += 1
            case ChildWaiting(delay=delay):
                self.delays.append(delay)
            case SupervisorGaveUp(supervisor=supervisor, child=child, reason=reason):
                self.gave_up.append(f"{supervisor} on {child}: {reason}")
            case _:
                pass


async def show(books: Books, tally: Tally) -> None:
    """On a terminal: one line that is written over and over."""
    if not sys.stdout.isatty():
        return
    try:
        while True:
            await anyio.sleep(0.2)
            text = (
                f"{books.answers.total()} answers, {books.lookups['hit']} from the cache, "
                f"{len(books.fetches)} fetches, {tally.crashes.total()} crashes, "
                f"{tally.restarts.total()} restarts"
            )
            print(f"\r\x1b[K{text}", end="", flush=True)
    finally:
        print("\r\x1b[K", end="", flush=True)


def summary(books: Books, result: Audit, tally: Tally, seed: int) -> str:
    """All figures, those of both sides among them."""
    lookups, hosts = books.lookups, sorted({host for host, _ in result.served})
    requests = result.served.total() + result.reached
    mean = f", after {fmean(tally.delays) * 1000:.0f} ms on average" if tally.delays else ""
    rows = [
        ("seed", f"{seed}"),
        ("answers", told(books.answers)),
        ("retries", told(books.retries)),
        ("cache", f"{lookups['asked']} calls = {sums(lookups, 'hit', 'miss', 'unanswered')}"),
        ("requests", f"{requests} reached the hosts, {result.reached} of them were abandoned"),
        *((f"  {host}", told(of_host(result.served, host))) for host in hosts),
        ("fetches", f"{len(books.fetches)} counted by workers, {result.abandoned} abandoned"),
        *((f"  {host}", told(of_host(result.counted, host))) for host in hosts),
        ("rate", f"{result.fastest} at most to a host within a second, {allowed(books)} allowed"),
        ("subscribers", f"{len(books.heard)} heard of {len(books.published)} finished fetches"),
        ("crashes", told(tally.crashes)),
        ("restarts", f"{told(tally.restarts)}{mean}"),
        *(("gave up", text) for text in tally.gave_up),
        *(("problem", text) for text in result.problems[:10]),
        ("accounting", "agrees" if result.agrees else f"DISAGREES in {len(result.problems)} cases"),
    ]
    return "\n".join(
        fill(f"{name:13}{text}", 96, subsequent_indent=" " * 13, break_on_hyphens=False)
        for name, text in rows
    )


def sums(counts: Counter[str], *names: str) -> str:
    return " + ".join(f"{counts[name]} {name}" for name in names)


def allowed(books: Books) -> str:
    limits = books.limits
    return f"{limits.rate:g} + a burst of {limits.burst}"


def of_host(counts: Counter[tuple[str, str]], host: str) -> Counter[str]:
    return Counter({status: n for (each, status), n in counts.items() if each == host})


def told(counts: Counter[str]) -> str:
    """A counter in words, in the order of the alphabet."""
    parts = ", ".join(f"{count} x {what}" for what, count in sorted(counts.items()))
    return f"{counts.total()}: {parts}" if parts else "0"
