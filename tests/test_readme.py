"""The README's code runs, in order, and prints what the README says; its commands exist."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_code_prints_what_the_text_below_it_says() -> None:
    blocks = re.findall(r"```(python|text)\n(.*?)```", README, re.DOTALL)
    code = "".join(text for kind, text in blocks if kind == "python")
    expected = "".join(text for kind, text in blocks if kind == "text")

    run = subprocess.run(  # a fresh interpreter, as the ids of Devices count up
        [sys.executable, "-X", "dev", "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )

    # asyncio's debug mode notes each step that took long, as on a busy machine.
    errors = re.sub(r"^Executing .* took .* seconds\n", "", run.stderr, flags=re.MULTILINE)
    assert errors == ""
    assert run.stdout == expected


@pytest.mark.parametrize("what", ["the main job", "the tests"])
def test_each_of_the_two_commands_stands_below_its_comment(what: str) -> None:
    command = re.search(rf"^# {what}\n(.+)$", README, re.MULTILINE)

    assert command is not None
    assert command[1].startswith("python3 -m venv .venv && .venv/bin/pip install ")


def test_every_file_that_the_readme_names_exists() -> None:
    named = set(re.findall(r"\b((?:examples|benchmarks|backplane|tests|\.ci)/[\w./]+)", README))

    assert named
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []
