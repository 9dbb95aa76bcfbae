"""What the main file of a program gives to its child processes, and gets back from them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # mypy knows the tests as single files, pytest as parts of packages
    from child_world import ROOT
else:
    from .child_world import ROOT

BEGINNING = """
import threading
import anyio
from backplane.bridge import NotSendableError, RemoteError, in_process

class Odd(Exception):
    pass

class Held(Exception):
    def __init__(self):
        super().__init__("with a lock")
        self.lock = threading.Lock()

class Own(Exception):
    def __init__(self, code, text):
        super().__init__(text)

def fail(kind, *args):
    raise kind(*args)

def call(fn, *args):
    async def main():
        try:
            print(await in_process(fn)(*args))
        except Exception as error:
            print(type(error).__name__, "|", error, "|", *error.__notes__)
    anyio.run(main)
"""


def run(script: Path, text: str, *, module: str = "") -> str:
    script.parent.mkdir(exist_ok=True)
    script.write_text(BEGINNING + text)
    done = subprocess.run(
        [sys.executable, *(["-m", module] if module else [str(script)])],
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{script.parents[1]}"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stdout


def test_an_exception_of_the_main_file_comes_as_itself(tmp_path: Path) -> None:
    said = run(
        tmp_path / "program.py",
        "async def main():\n"
        "    try:\n"
        "        await in_process(fail)(Odd)\n"
        "    except Odd as error:\n"
        "        print(error.__notes__[0])\n"
        "if __name__ == '__main__':\n"
        "    anyio.run(main)\n",
    )

    assert said.rstrip().endswith("\n__main__.Odd")
    assert "__mp_main__" not in said


def test_one_that_cannot_be_sent_is_told_by_the_name_that_it_has_here(tmp_path: Path) -> None:
    said = run(tmp_path / "program.py", "if __name__ == '__main__':\n    call(fail, Held)\n")

    assert said.startswith("RemoteError | __main__.Held: with a lock | The traceback over there:")
    assert "__mp_main__" not in said


def test_why_an_own_exception_does_not_come_as_itself_is_told(tmp_path: Path) -> None:
    guarded = "if __name__ == '__main__':\n    call(fail, {})\n"
    own = run(tmp_path / "own.py", guarded.format("Own, 3, 'its text'"))
    held = run(tmp_path / "held.py", guarded.format("Held"))

    assert own.startswith("RemoteError | __main__.Own: its text | The traceback over there:")
    assert "\n __main__.Own could not be unpickled here: " in own
    assert own.endswith("argument: 'text'; pass all arguments on to super().__init__()\n")
    assert "\n __main__.Held could not be pickled there: " in held
    assert held.endswith("lock' object; keep nothing in it that cannot be pickled\n")


def test_what_is_defined_under_the_guard_is_refused_with_an_explanation(
    tmp_path: Path,
) -> None:
    said = run(
        tmp_path / "program.py",
        "if __name__ == '__main__':\n    def late(): ...\n    call(late)\n",
    )

    assert said.startswith("NotSendableError | the process has run the main file and has not found")
    assert "define it at the top level, not under `if __name__" in said


def test_a_module_that_is_the_program_is_found(tmp_path: Path) -> None:
    said = run(
        tmp_path / "package" / "tool.py",
        "def double(n):\n    return 2 * n, __name__\n"
        "if __name__ == '__main__':\n    call(double, 2)\n",
        module="package.tool",
    )

    assert said == "(4, '__mp_main__')\n"


def test_a_function_of_a_packages_main_file_is_refused(tmp_path: Path) -> None:
    said = run(
        tmp_path / "package" / "__main__.py",
        "try:\n    in_process(fail)\nexcept NotSendableError as error:\n    print(error)\n",
        module="package",
    )

    assert said.startswith("another process cannot find __main__.fail: it is defined in the")
    assert "__main__.py of a package" in said
