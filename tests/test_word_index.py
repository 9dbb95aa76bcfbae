"""The index of words is right, whoever is killed while it is made."""

from __future__ import annotations

import asyncio
import email
import json
import os
import re
import shutil
import subprocess
import sys
import unittest
import xml
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[1] / "examples" / "word_index.py"
PACKAGES = [
    str(Path(package.__file__ or "").parent) for package in (asyncio, email, json, unittest, xml)
]


def run(*arguments: str, program: Path = EXAMPLE) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", str(program), *arguments],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
    )


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_index_is_right_though_workers_and_a_node_are_killed(backend: str) -> None:
    result = run("--backend", backend, "--pieces", "10", "--kills", "4", *PACKAGES)

    assert result.returncode == 0, result.stderr
    assert "the index is the one that a single process makes" in result.stdout
    killed = re.search(r"workers killed: (\d+)", result.stdout)
    assert killed is not None
    assert int(killed[1]) > 0
    pieces = re.search(r"pieces: (\d+) by the first node, (\d+) by the second", result.stdout)
    assert pieces is not None
    assert int(pieces[1]) + int(pieces[2]) == 10
    assert "the second node killed: 1;" in result.stdout


def test_without_a_monkey_nothing_is_done_twice() -> None:
    result = run("--pieces", "4", "--kills", "0", *PACKAGES)

    assert result.returncode == 0, result.stderr
    assert "workers killed: 0; of the first node's, 0" in result.stdout
    assert "the second node killed: 0; pieces lost with it, and done again: 0" in result.stdout


def test_no_process_is_left_behind(tmp_path: Path) -> None:
    program = tmp_path / EXAMPLE.name  # so that no process of another run has this name
    shutil.copy(EXAMPLE, program)

    result = run("--pieces", "4", "--kills", "2", *PACKAGES, program=program)

    assert result.returncode == 0, result.stderr
    found = subprocess.run(["pgrep", "-f", f"{program} --second"], capture_output=True, check=False)
    assert found.stdout == b""
