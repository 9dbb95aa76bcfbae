"""A supervision tree as plain data, and as a drawing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._child import ChildInfo


@dataclass(frozen=True, slots=True)
class SupervisorInfo:
    """A supervisor and its children, as of the moment of asking."""

    name: str
    kind: str
    """Its strategy, or "dynamic"."""
    phase: str
    """"starting", "running", "stopping" or "ended"."""
    children: tuple[ChildInfo, ...]
    """In start order."""
    zombies: tuple[str, ...]
    """The names of children that could not be killed, and run on."""

    def __str__(self) -> str:
        return draw(self)


def draw(info: SupervisorInfo) -> str:
    """Draw a tree as text, a line for each supervisor and child."""
    lines = [_title(info)]
    _draw_children(info, "", lines)
    return "\n".join(lines)


def _title(info: SupervisorInfo) -> str:
    return f"{info.name} ({info.kind}, {info.phase})"


def _draw_children(info: SupervisorInfo, indent: str, lines: list[str]) -> None:
    rows: list[ChildInfo | str] = [*info.children, *info.zombies]
    for i, row in enumerate(rows):
        branch, below = ("└─ ", "   ") if i == len(rows) - 1 else ("├─ ", "│  ")
        if isinstance(row, str):
            lines.append(f"{indent}{branch}{row} zombie")
            continue
        restarts = f", restarted {row.restarts}x" if row.restarts > 0 else ""
        subtree = row.subtree
        kind = "" if subtree is None else f" ({subtree.kind})"
        lines.append(f"{indent}{branch}{row.id}{kind} {row.state.value}{restarts}")
        if subtree is not None:
            _draw_children(subtree, indent + below, lines)
