"""What a child process does not load: most of its start is imports."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from backplane import bridge
from backplane.bridge import in_process

one_loop = pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
HOMES: dict[str, tuple[str, ...]] = vars(bridge)["_HOMES"]


@pytest.fixture(autouse=True)
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """What measures coverage in child processes loads this and that."""
    for name in list(os.environ):
        if name.startswith("COVERAGE_"):
            monkeypatch.delenv(name)


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True, timeout=60
    )
    return done.stdout


@pytest.mark.anyio
@one_loop
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
async def test_a_child_process_loads_its_loop_and_little_else(backend: Any) -> None:
    look: Any = eval
    loaded = set(await in_process(look, backend=backend)("[*__import__('sys').modules]"))

    others = {"asyncio", "trio"} - {backend}
    assert not loaded & (others | {"msgspec", "multiprocessing", "nats", "uvloop", "cryptography"})
    assert not loaded & {"backplane.supervisor", "backplane.otp", "backplane.testing"}
    parts = {name.removeprefix("backplane.bridge.") for name in loaded if ".bridge." in name}
    assert {part for part in parts if not part.startswith(("_child_", "_errors"))} == set()
    assert not parts & {"_child_keeper", "_child_memory", "_child_system"}


def test_the_bridge_alone_loads_nothing_that_is_not_asked_for() -> None:
    code = "import sys, backplane.bridge; print('msgspec' in sys.modules, 'anyio' in sys.modules)"
    assert run(code) == "False False\n"


def test_who_starts_processes_loads_no_nodes() -> None:
    code = "import sys; from backplane.bridge import in_process; print(*sys.modules)"
    assert not set(run(code).split()) & {"msgspec", "backplane.bridge._node", "asyncio", "trio"}


def test_all_names_of_the_bridge_are_there_however_they_are_asked_for() -> None:
    code = (
        "from backplane import bridge\n"
        "before = dir(bridge)\n"
        "from backplane.bridge import *\n"
        "names = set(bridge.__all__)\n"
        "print(names <= set(before), names <= set(globals()), names <= set(vars(bridge)))\n"
    )
    assert run(code) == "True True True\n"
    assert set(bridge.__all__) <= set(dir(bridge))
    with pytest.raises(AttributeError, match=r"^module 'backplane.bridge' has no attribute 'Nod'$"):
        _ = bridge.Nod  # type: ignore[attr-defined]


def test_type_checkers_are_told_of_the_same_names() -> None:
    assert bridge.__file__ is not None
    tree = ast.parse(Path(bridge.__file__).read_text())
    (told,) = (node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in told.body if isinstance(node, ast.ImportFrom)]

    assert {
        str(node.module): tuple(alias.name for alias in node.names) for node in imports
    } == HOMES
