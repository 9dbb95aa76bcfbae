"""The other libraries that are measured, where they are installed."""

from __future__ import annotations

from importlib import metadata
from importlib.util import find_spec
from typing import NamedTuple

from _harness import Case, Measure, On
from _supervisor_many import Run, by


class Peer(NamedTuple):
    """A library: what it is called on PyPI, what is imported, and where it runs."""

    name: str
    module: str
    on: On

    @property
    def is_here(self) -> bool:
        return find_spec(self.module) is not None

    def add(self, case: Case, measure: Measure, note: str = "") -> None:
        """Register it with a case."""
        if self.is_here:
            case.by(self.name + note, self.on)(measure)

    def add_crew(self, run: Run, note: str = "") -> None:
        """Register it with the two cases of a crew."""
        if self.is_here:
            by(self.name + note, self.on)(run)


AIOTOOLS = Peer("aiotools", "aiotools", "asyncio")
TRIOTP = Peer("triotp", "triotp", "trio")
OTPYLIB = Peer("otpylib", "otpylib", "asyncio")
MODE = Peer("mode-streaming", "mode", "asyncio")
FAUXTP = Peer("fauxtp", "fauxtp", "any")
LAPINBEAM = Peer("lapinbeam", "lapinbeam", "asyncio")
CASTY = Peer("casty", "casty", "asyncio")
EVERYTHING = Peer("everything-is-an-actor", "actor_for_agents", "asyncio")
PEERS = [AIOTOOLS, TRIOTP, OTPYLIB, MODE, FAUXTP, LAPINBEAM, CASTY, EVERYTHING]
SAME_TASK = [EVERYTHING]
"""Those that restart a child within its task."""


def describe() -> str:
    """The versions of those that are installed, and the names of the others."""
    return ", ".join(
        f"{peer.name} {metadata.version(peer.name) if peer.is_here else 'not installed'}"
        for peer in PEERS
    )
