"""The Erlang VM as a contender: one beside this process, asked over a pipe."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

from _harness import Measure

SCRIPT = Path(__file__).with_name("erlang_peer.escript")


class Vm:
    """A VM with one scheduler, on the same cpu as Python, that waits without spinning."""

    def __init__(self, script: Path = SCRIPT) -> None:
        self._script = script
        self._process: subprocess.Popen[str] | None = None

    def start(
        self,
        cpu: int | None,
        options: Iterable[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> str | None:
        """Start it, and return its version; None if there is no Erlang here."""
        if shutil.which("erl") is None or shutil.which("escript") is None:
            return None
        command = ["escript", str(self._script), *options]
        pinned = ""
        if cpu is not None and shutil.which("taskset") is not None:
            command = ["taskset", "-c", str(cpu), *command]
            pinned = f" on cpu {cpu}"
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            command,
            stdin=pipe,
            stdout=pipe,
            text=True,
            bufsize=1,
            env={**os.environ, **(environment or {})},
        )
        return self._line() + pinned

    def stop(self) -> None:
        """End it: it does so by itself at the end of its input."""
        if self._process is not None:
            self._process.communicate()

    def ask(self, name: str, scale: float = 1e-9) -> Measure:
        """A measurement that this VM makes: nanoseconds, unless ``scale`` says otherwise."""

        return lambda count: self.number(name, count) * scale

    def number(self, name: str, count: int) -> int:
        """What it answers, as it is."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(f"{name} {count}\n")
        return int(self._line())

    def _line(self) -> str:
        assert self._process is not None
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        if not line:
            raise RuntimeError(f"{self._script.name} has ended; run it by hand to see why")
        return line


vm = Vm()
