"""What ``line_service.py`` shows: events counted, the tree drawn anew, and the summary."""

import sys
from collections import Counter, defaultdict, deque
from itertools import groupby
from statistics import quantiles
from textwrap import fill

import anyio
from line_audit import Audit
from line_monkey import Traps
from line_parts import Poller

from backplane import DeviceID, Failed, Fault
from backplane.supervisor import (
    ChildExited,
    ChildStarted,
    ChildUnresponsive,
    Event,
    Supervisor,
    SupervisorGaveUp,
)


class Tally:
    """A subscriber that counts what happened, to whom and why."""

    def __init__(self) -> None:
        self.restarts: defaultdict[str, Counter[str]] = defaultdict(Counter)  # by part: causes
        self.deaths: Counter[str] = Counter()  # of connections, which are not restarted
        self.gave_up: list[str] = []
        self.causes: dict[str, str] = {}  # by part: why it ended last
        self.hung: set[DeviceID] = set()

    def __call__(self, event: Event) -> None:
        match event:
            case ChildUnresponsive(device=device):
                self.hung.add(device)
            case ChildExited(child="connection", device=device, fault=fault, stopping=stopping):
                if fault is not None or stopping:
                    self.deaths[self.cause(device, fault)] += 1
            case ChildExited(child=child, device=device, fault=fault):
                self.causes[child] = self.cause(device, fault)
            case ChildStarted(child=child, restarts=restarts) if restarts:
                self.restarts[child][self.causes[child]] += 1
            case SupervisorGaveUp(supervisor=supervisor, child=child, reason=reason):
                self.gave_up.append(f"{supervisor} on {child}: {reason}")
            case _:
                pass

    @property
    def total(self) -> int:
        return sum(causes.total() for causes in self.restarts.values())

    def cause(self, device: DeviceID, fault: Fault | None) -> str:
        if device in self.hung:
            self.hung.remove(device)
            return "watchdog"
        if isinstance(fault, Failed):
            return type(fault.exception).__name__
        return "was stopped" if fault is None else type(fault).__name__


class Screen:
    """The live view: on a terminal the whole tree, else a line now and then."""

    def __init__(self, poller: Poller, traps: Traps, tally: Tally) -> None:
        self.poller = poller
        self.traps = traps
        self.tally = tally
        self.supervisor: Supervisor | None = None
        self.live = sys.stdout.isatty()

    async def show(self) -> None:
        """The child."""
        pause = 0.2 if self.live else 1.0
        seen = deque([self.poller.entries], maxlen=round(2 / pause) + 1)
        while True:
            await anyio.sleep(pause)
            seen.append(self.poller.entries)
            rate = max(seen[-1] - seen[0], 0) / pause / (len(seen) - 1)
            text = (
                f"{seen[-1]} entries, {rate:.0f} a second, {self.poller.connections} connections, "
                f"{self.traps.kills.total()} kills, {self.tally.total} restarts"
            )
            if self.live and self.supervisor is not None:
                text = f"\x1b[H\x1b[J{fold(str(self.supervisor.tree()))}\n\n{text}"
            print(text, flush=True)


def fold(drawing: str) -> str:
    """A drawing in which lines that differ in nothing but their branch are one."""
    runs = groupby(drawing.splitlines(), lambda line: line.replace("└", "├"))
    lines = [list(run) for _, run in runs]
    return "\n".join(run[-1] + f"  x {len(run)}" * (len(run) > 1) for run in lines)


def summary(result: Audit, traps: Traps, tally: Tally, cuts: int) -> str:
    """All figures, those of both sides among them."""
    clients = result.clients
    sent, acked, reads = len(clients.sent), len(clients.acked), clients.reads
    kills: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for (part, way), count in traps.kills.items():
        kills[part][way] += count
    rows = [
        ("requests", f"{sent + reads} = {sent} ADD + {reads} GET"),
        ("retried", f"{clients.retried}"),
        ("reconnects", told(clients.lost)),
        ("latency", latency(clients.seconds)),
        ("kills", f"{traps.kills.total()}"),
        *((f"  {part}", told(ways)) for part, ways in kills.items()),
        ("restarts", f"{tally.total}"),
        *((f"  {part}", told(causes)) for part, causes in tally.restarts.items()),
        ("connections lost", told(tally.deaths)),
        ("acknowledged", f"{acked} ADD, as the clients know; {sent - acked} not"),
        ("journal", f"{result.entries} entries, {result.known} of them acknowledged"),
        ("torn ends", f"{cuts} cut off"),
        *(("gave up", text) for text in tally.gave_up),
        *(("problem", text) for text in result.problems[:10]),
        ("accounting", "agrees" if result.agrees else f"DISAGREES in {len(result.problems)} cases"),
    ]
    return "\n".join(
        fill(f"{name:17}{text}", 96, subsequent_indent=" " * 17, break_on_hyphens=False)
        for name, text in rows
    )


def told(counts: Counter[str]) -> str:
    """A counter in words, the most frequent first."""
    parts = ", ".join(f"{count} x {what}" for what, count in counts.most_common())
    return f"{counts.total()}: {parts}" if parts else "0"


def latency(seconds: list[float]) -> str:
    if len(seconds) < 2:
        return "unknown"
    cuts = quantiles(seconds, n=100)
    return f"median {cuts[49] * 1000:.1f} ms, p99 {cuts[98] * 1000:.1f} ms"
