"""Children for tests of supervisors: they do what a test tells them, and it sees what they did."""

from __future__ import annotations

from typing import Any

import anyio
import anyio.lowlevel
import sniffio
from anyio.abc import TaskStatus

from backplane.supervisor import ChildSpec


def now() -> float:
    return anyio.current_time()


def on_trio() -> bool:
    return sniffio.current_async_library() == "trio"


async def settle() -> None:
    """Let everything happen that needs no time."""
    for _ in range(60):
        await anyio.lowlevel.checkpoint()


class Stage:
    """Children that do what the test tells them, and a log of what they did.

    ``+a`` means that a has begun, ``-a`` that it is over.
    """

    def __init__(self, tells_of_starts: bool = False) -> None:
        self._tells_of_starts = tells_of_starts
        """Whether the log says when those that are made by ``starter`` have started."""
        self.log: list[str] = []
        self.fails: dict[str, list[BaseException]] = {}
        """What the next starts of a child will raise."""
        self._cues: dict[str, anyio.Event] = {}
        self._errors: dict[str, BaseException] = {}

    def child(self, name: str, *args: Any, **fields: Any) -> ChildSpec:
        """A child that runs until it is told otherwise."""

        async def run() -> None:
            self.log.append(f"+{name}")
            try:
                await self._until_cue(name)
            finally:
                self.log.append(f"-{name}")

        return ChildSpec(name, run, *args, **fields)

    def starter(self, name: str, seconds: float = 0, **fields: Any) -> ChildSpec:
        """A child that says when it has started, or fails to."""

        async def run(*, task_status: TaskStatus[str]) -> None:
            self.log.append(f"+{name}")
            try:
                await anyio.sleep(seconds)
                if self.fails.get(name):
                    raise self.fails[name].pop(0)
                task_status.started(f"value of {name}")
                if self._tells_of_starts:
                    self.log.append(f"{name} ready")
                await self._until_cue(name)
            finally:
                self.log.append(f"-{name}")

        return ChildSpec(name, run, **fields)

    def slow(self, name: str, seconds: float, **fields: Any) -> ChildSpec:
        """A child that takes its time to stop."""

        async def run() -> None:
            self.log.append(f"+{name}")
            try:
                await self._until_cue(name)
            finally:
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(seconds)
                self.log.append(f"-{name}")

        return ChildSpec(name, run, **fields)

    async def _until_cue(self, name: str) -> None:
        cue = self._cues[name] = anyio.Event()
        await cue.wait()
        if name in self._errors:
            raise self._errors.pop(name)

    def give_cue(self, name: str, error: BaseException | None = None) -> None:
        if error is not None:
            self._errors[name] = error
        self._cues.pop(name).set()

    async def end(self, name: str) -> None:
        """Have a child return."""
        self.give_cue(name)
        await settle()

    async def crash(self, name: str, error: BaseException | None = None) -> None:
        """Have a child raise."""
        self.give_cue(name, ValueError(name) if error is None else error)
        await settle()

    def new(self) -> list[str]:
        """What was logged since the last time."""
        log, self.log = self.log, []
        return log
