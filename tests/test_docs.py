"""The code of each page in docs runs and prints what the page says; the names in it exist."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from backplane.bridge import TLS, Node, NotConnectedError

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))
NAMES = ROOT / "docs" / "from-erlang.md"

# Where a plain name is looked for, and what may stand in front of a dot.
TIERS = ["backplane.otp", "backplane.supervisor", "backplane"]
MODULES = {
    "anyio": "anyio",
    "supervisor": "backplane.supervisor",
    "system": "backplane.otp.system",
    "testing": "backplane.testing",
}
# Python's own, anyio's convention, and arguments and attributes that the page speaks of.
SPOKEN = {
    "None", "TimeoutError", "contextvars", "logging", "finally", "async with", "backplane.otp",
    "task_status.started", "init", "reason", "shutdown()", "max_restarts", "max_seconds",
}  # fmt: skip


def second_column(page: str) -> list[str]:
    """What stands in backquotes in the second column of the tables of a page."""
    found: list[str] = []
    for line in page.splitlines():
        if line.startswith("| ") and not line.startswith(("| There", "|---")):
            cells = line.strip("|").split(" | ")
            assert len(cells) in (2, 3), line
            found += re.findall(r"`([^`]+)`", cells[1])
    return found


def has_member(owner: Any, name: str) -> bool:
    """Whether a module, a class or one of its instances has a public name."""
    if inspect.ismodule(owner):
        return name in getattr(owner, "__all__", dir(owner))
    bases = owner.__mro__ if inspect.isclass(owner) else ()
    return hasattr(owner, name) or any(name in inspect.get_annotations(base) for base in bases)


def find(dotted: str) -> Any:
    """The object that a name on the page means; None if there is none."""
    owner: Any
    first, *rest = dotted.split(".")
    if first in MODULES:
        owner = importlib.import_module(MODULES[first])
    else:
        tiers = [importlib.import_module(tier) for tier in TIERS]
        owner = next((getattr(tier, first) for tier in tiers if first in tier.__all__), None)
    for name in rest:
        if owner is None or not has_member(owner, name):
            return None
        owner = getattr(owner, name, name)
    return owner


def complaints(text: str) -> list[str]:
    """What is wrong with a name or a call on the page: names and arguments that do not exist."""
    if text in SPOKEN:
        return []
    parsed = ast.parse(text).body[0]
    node = parsed.exc if isinstance(parsed, ast.Raise) else getattr(parsed, "value", None)
    if not isinstance(node, ast.Call):
        return [] if find(text) is not None else [text]
    function = find(ast.unparse(node.func))
    if function is None:
        return [text]
    parameters = inspect.signature(function).parameters
    any_name = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    return [
        f"{text}: {keyword.arg}"
        for keyword in node.keywords
        if keyword.arg not in parameters and not any_name
    ]


def test_there_are_pages() -> None:
    assert NAMES in PAGES


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_code_prints_what_the_text_below_it_says(page: Path) -> None:
    blocks = re.findall(r"```(python|text)\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
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


SLOW = """
```python
import asyncio, time

async def main():
    time.sleep(0.11)
    print("done")

asyncio.run(main())
```
```text
done
```
"""


def test_a_page_is_right_on_a_machine_that_is_busy_too(tmp_path: Path) -> None:
    page = tmp_path / "slow.md"
    page.write_text(SLOW, encoding="utf-8")

    test_the_code_prints_what_the_text_below_it_says(page)


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"], indirect=True)
async def test_the_certificates_that_the_page_tells_how_to_make_are_good(tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    page = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    (commands,) = re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
    made = ["sh", "-euc", commands]
    subprocess.run(made, check=True, cwd=tmp_path, capture_output=True)  # noqa: ASYNC221

    a, b = (
        TLS(tmp_path / f"{name}.pem", tmp_path / f"{name}.key", tmp_path / "ca.pem")
        for name in "ab"
    )
    secret = bytes(range(32))
    async with Node("a", secret=secret, tls=a) as one, Node("b", secret=secret, tls=b) as other:
        address = await other.listen("tls://127.0.0.1:0")
        assert (await one.connect(address, expect="b")).name == "b"
    async with Node("c", secret=secret, tls=a) as one, Node("b", secret=secret, tls=b) as other:
        with pytest.raises(NotConnectedError):
            await one.connect(await other.listen("tls://127.0.0.1:0"))


NAMED = sorted(set(second_column(NAMES.read_text(encoding="utf-8"))))


def test_every_function_of_the_tier_is_on_the_page() -> None:
    otp = importlib.import_module("backplane.otp")
    said = set(re.findall(r"`(\w+)", NAMES.read_text(encoding="utf-8")))

    functions = {name for name in otp.__all__ if inspect.isfunction(getattr(otp, name))}

    assert functions
    assert functions - said == set()


@pytest.mark.parametrize("text", NAMED)
def test_a_name_in_the_tables_is_public(text: str) -> None:
    assert complaints(text) == []


@pytest.mark.parametrize(
    "text", ["Actor", "Pid.kill", "system.install", "supervisor.spawn", "Scope.spawn(fn, on=True)"]
)
def test_a_name_that_does_not_exist_would_be_found(text: str) -> None:
    assert complaints(text) != []
