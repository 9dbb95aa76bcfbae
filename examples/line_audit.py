"""The books of ``line_service.py``: what the clients were told against what the journal holds.

It is plain and knows nothing of the service: it reads files, those that the
clients wrote and the one that the service wrote, in its own way.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from zlib import crc32

LINE = re.compile(rb"([0-9a-f]{8}) ((\S+) (\S+) ([0-9]+))")


@dataclass
class Clients:
    """What the clients know."""

    sent: dict[str, tuple[str, int]] = field(default_factory=dict)  # by id: key and n
    acked: dict[str, int] = field(default_factory=dict)  # by id: the total that they were told
    reads: int = 0
    retried: int = 0
    lost: Counter[str] = field(default_factory=Counter)  # connections, by cause
    seconds: list[float] = field(default_factory=list)  # from first try to answer
    problems: list[str] = field(default_factory=list)


@dataclass
class Audit:
    """Both sides, and what is wrong between them."""

    clients: Clients
    entries: int
    known: int  # entries that were acknowledged
    problems: list[str]

    @property
    def agrees(self) -> bool:
        return not self.problems


def read_logs(paths: Iterable[Path]) -> Clients:
    """What all clients logged. A line without an end was not logged."""
    books = Clients()
    for path in paths:
        for line in path.read_text("utf-8").split("\n")[:-1]:
            match line.split():
                case ["sent", id, key, n]:
                    books.sent[id] = (key, int(n))
                case ["acked", id, total, seconds]:
                    books.acked[id] = int(total)
                    books.seconds.append(float(seconds))
                case ["read", _, _, seconds]:
                    books.reads += 1
                    books.seconds.append(float(seconds))
                case ["again", *_]:
                    books.retried += 1
                case ["lost", cause]:
                    books.lost[cause] += 1
                case ["wrong", *words]:
                    books.problems.append(" ".join(words))
                case _:
                    books.problems.append(f"{path} says {line!r}")
    return books


def read_journal(path: Path, problems: list[str]) -> Iterator[tuple[str, str, int]]:
    """Each entry; what comes after the last end of a line was never acknowledged."""
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        found = LINE.fullmatch(line)
        if found is None or int(found[1], 16) != crc32(found[2]):
            problems.append(f"line {number} of the journal is damaged: {line!r}")
        else:
            yield found[3].decode(), found[4].decode(), int(found[5])


def audit(journal: Path, logs: Iterable[Path]) -> Audit:
    """Compare both sides, id by id."""
    clients = read_logs(logs)
    times: Counter[str] = Counter()
    totals: Counter[str] = Counter()
    oddities: list[str] = []
    for entry_id, key, n in read_journal(journal, oddities):
        times[entry_id] += 1
        totals[key] += n
        if clients.sent.get(entry_id) != (key, n):
            oddities.append(f"{entry_id} is in the journal, and nobody sent it so")
        if clients.acked.get(entry_id, totals[key]) != totals[key]:
            told = clients.acked[entry_id]
            oddities.append(f"{entry_id} made {totals[key]}, and was told {told}")
    known = [entry_id for entry_id in clients.acked if times[entry_id]]
    lost = [f"{each} was acknowledged, and is lost" for each in clients.acked if not times[each]]
    twice = [f"{each} is in the journal {n} times" for each, n in times.items() if n > 1]
    return Audit(clients, times.total(), len(known), [*lost, *twice, *clients.problems, *oddities])
