"""Whether the kernel's out-of-memory killer has been at work: a hint for a SIGKILL."""

from __future__ import annotations

from pathlib import Path

_ROOT = Path("/")


def oom_kills(pid: int | str = "self", root: Path = _ROOT) -> int | None:
    """How many processes the kernel has killed so far because memory ran out.

    In the control group of a process if that can be read (both versions of
    cgroups tell), else on the whole machine. None if nothing can be read. Only
    the difference of two numbers means anything, and only together with a
    SIGKILL: another process of the group may have been the victim.
    """
    for file in [*_group_files(pid, root), root / "proc/vmstat"]:
        try:
            lines = file.read_text("ascii", "replace").splitlines()
        except OSError:
            continue
        for line in lines:
            name, _, number = line.partition(" ")
            if name == "oom_kill" and number.strip().isdecimal():
                return int(number)
    return None


def _group_files(pid: int | str, root: Path) -> list[Path]:
    try:
        lines = (root / f"proc/{pid}/cgroup").read_text("utf-8", "replace").splitlines()
    except OSError:
        return []
    files = []
    for line in lines:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        inside = path.lstrip("/")
        if not controllers:
            files.append(root / "sys/fs/cgroup" / inside / "memory.events")
        elif "memory" in controllers.split(","):
            files.append(root / "sys/fs/cgroup/memory" / inside / "memory.oom_control")
    return files
