"""What is asked of another process, and what is done there: the same for all contenders.

It imports next to nothing: whoever starts a process for it waits for that.
"""

from __future__ import annotations

import time
from typing import Any

SECRET = b"known to whoever reads the benchmarks"


def question(number: int) -> dict[str, Any]:
    """What is sent: some 30 bytes in most encodings."""
    return {"op": "add", "key": "user:42", "n": number}


def answer(asked: dict[str, Any]) -> int:
    """What is answered."""
    return int(asked["n"]) + 1


class Counter:
    """Takes messages in the other process, and knows how many."""

    def __init__(self) -> None:
        self.told = 0

    def take(self, message: dict[str, Any]) -> None:
        """Have a message done with."""
        if message["op"] != "add":
            raise ValueError(message)
        self.told += 1

    def answer(self, asked: dict[str, Any] | None) -> int:
        """What is answered: to None, how many messages were taken."""
        return self.told if asked is None else answer(asked)


def when() -> float:
    """The time at which this is called, as all processes of the machine know it."""
    return time.monotonic()


def say_when(to: Any) -> None:
    """The same, into a pipe."""
    to.send(when())


def answer_pipe(pipe: Any) -> None:
    """Answer what comes through a connection of multiprocessing, until that is closed."""
    counter = Counter()
    try:
        while True:
            kind, body = pipe.recv()
            if kind == "tell":
                counter.take(body)
            else:
                pipe.send(counter.answer(body))
    except EOFError:
        pass


def answer_queues(asked: Any, answered: Any) -> None:
    """The same with queues, until None comes."""
    counter = Counter()
    while (it := asked.get()) is not None:
        kind, body = it
        if kind == "tell":
            counter.take(body)
        else:
            answered.put(counter.answer(body))
