"""Child processes whose parent dies, and those that come from a main file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest

if TYPE_CHECKING:  # mypy knows the tests as single files, pytest as parts of packages
    from child_world import ROOT, Until, lives, words
else:
    from .child_world import ROOT, Until, lives, words

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True),
]

MIDDLE = str(Path(__file__).with_name("child_middle.py"))


class Middle:
    """A program between this one and the child process."""

    def __init__(self, path: str, then: str, how: str = "") -> None:
        self.path = path
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", MIDDLE, path, then, how],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )

    async def pids(self) -> list[int]:
        await Until(lambda: words(self.path))
        return [int(word) for word in words(self.path)]

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for word in words(self.path) + words(f"{self.path}.fork"):
            if word.isdecimal() and lives(int(word)):
                os.kill(int(word), signal.SIGKILL)


@pytest.mark.parametrize(
    ("then", "how"),
    [
        ("sleep", ""),
        ("stopped", ""),
        ("holding the lock", ""),
        ("sleep", "fork"),
        ("sleep", "no F_SETSIG"),
        ("sleep", "no F_SETSIG, fork"),
    ],
)
async def test_a_killed_parent_takes_child_and_grandchild_along(
    path: str, then: str, how: str
) -> None:
    middle = Middle(path, then, how)
    try:
        child, grandchild = await middle.pids()
        await Until(lambda: then != "stopped" or state_of(child) == "T")
        assert lives(child)
        assert lives(grandchild)
        if "fork" in how:
            await Until(lambda: words(f"{path}.fork"))

        middle.process.kill()
        await Until(lambda: not lives(child) and not lives(grandchild))
        assert all(lives(int(word)) for word in words(f"{path}.fork"))
    finally:
        middle.close()


async def test_a_parent_that_exits_takes_them_along(path: str) -> None:
    middle = Middle(path, "sleep", "return")
    try:
        with anyio.fail_after(20):
            assert await anyio.to_thread.run_sync(middle.process.wait) == 0
        await Until(lambda: not any(lives(int(word)) for word in words(path)))
    finally:
        middle.close()


async def test_functions_and_classes_of_the_main_file_are_found(path: str) -> None:
    middle = Middle(path, "main")
    try:
        with anyio.fail_after(20):
            assert await anyio.to_thread.run_sync(middle.process.wait) == 0
    finally:
        middle.close()
    assert " ".join(words(path)) == ("__mp_main__ Returned(value='found in the main file') True 4")


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("def f(): ...\nChildProcess(f)", "a program that has no file"),
        ("ChildProcess(print)\nprint('it is')", "it is"),
    ],
)
async def test_a_function_of_a_program_without_a_file_is_refused(code: str, text: str) -> None:
    done = await anyio.run_process(
        [sys.executable, "-c", f"from backplane.bridge._child import ChildProcess\n{code}"],
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert text in (done.stdout + done.stderr).decode()


async def test_a_function_of_a_program_that_was_piped_in_is_refused() -> None:
    done = await anyio.run_process(
        [sys.executable],
        input=b"from backplane.bridge._child import ChildProcess\n"
        b"ChildProcess(print)\nprint('it is')\ndef f(): ...\nChildProcess(f)\n",
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.stdout == b"it is\n"
    assert "NotSendableError: another process cannot find __main__.f" in done.stderr.decode()
    assert "piped in, or given with -c" in done.stderr.decode()


@pytest.mark.parametrize("wrapped", [False, True])
async def test_a_main_file_without_its_guard_gets_an_explanation(
    tmp_path: Path, wrapped: bool
) -> None:
    script = tmp_path / "unguarded.py"
    script.write_text(
        "import anyio\n"
        "from backplane.bridge._child import ChildProcess\n"
        "def work(): ...\n"
        "async def main():\n"
        "    try:\n"
        "        async with ChildProcess(work) as child:\n"
        "            await child.wait()\n"
        "    except Exception as error:\n"
        f"        if {wrapped} and __name__ != '__main__':\n"
        "            raise ValueError from error\n"
        "        raise\n"
        "anyio.run(main)\n"
    )
    with anyio.fail_after(20):
        done = await anyio.run_process(
            [sys.executable, str(script)],
            check=False,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
    assert done.returncode == 1
    said = done.stderr.decode()
    assert "\nbackplane.bridge.NotSendableError: the main file starts process 'work'" in said
    assert 'what runs under `if __name__ == "__main__":`' in said
    assert "freeze_support" not in said
    assert "ValueError" not in said


def state_of(pid: int) -> str:
    """The kernel's letter for what a process does."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
