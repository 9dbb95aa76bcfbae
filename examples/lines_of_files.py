"""The plain half of ``process_files.py``: to find, read and count lines. It knows no Device."""

from collections import Counter
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import NamedTuple


class Entry(NamedTuple):
    """One line of a file."""

    path: Path
    number: int
    text: bytes

    @property
    def place(self) -> str:
        return f"{self.path}:{self.number}"


@dataclass
class Count:
    """What came of the lines: how many were indexed, their words, and those set aside."""

    indexed: int = 0
    words: Counter[str] = field(default_factory=Counter)
    aside: list[Entry] = field(default_factory=list)


def chunks(path: Path) -> Generator[list[Entry], None, None]:
    """The lines of a file, some at a time."""
    with path.open("rb") as file:
        number = count(1)
        while lines := file.readlines(1 << 16):
            yield [Entry(path, next(number), text) for text in lines]


def count_again(files: list[Path], encoding: str) -> Count:
    """Count in another way: no workers, no exceptions, and words told by character."""
    again, undecodable = Count(), frozenset(map(chr, range(0xDC80, 0xDD00)))
    for path in files:
        with path.open(encoding=encoding, errors="surrogateescape", newline="\n") as file:
            for number, line in enumerate(file, 1):
                if undecodable.isdisjoint(line):
                    again.indexed += 1
                    spaced = (c if c.isalnum() or c == "_" else " " for c in line)
                    again.words.update("".join(spaced).split())
                else:
                    text = line.encode(encoding, "surrogateescape")
                    again.aside.append(Entry(path, number, text))
    again.aside.sort()
    return again


def find_files(paths: list[Path]) -> Iterator[Path | str]:
    """The files that are meant or, in words, why one of them cannot be read."""
    for path in paths:
        try:
            files = sorted(path.glob("*.py")) if path.is_dir() else [path]
            if not files:
                yield f"{path}: no .py file in this directory"
            for file in files:
                if file.exists() and not file.is_file():
                    yield f"{file}: not a regular file, so it cannot be read twice"
                else:
                    file.open("rb").close()
                    yield file
        except OSError as error:
            yield f"{error.filename}: {error.strerror}"
