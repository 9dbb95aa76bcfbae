"""What users import: the names are fixed, documented, and the core stays small."""

from __future__ import annotations

import ast
import enum
import importlib
import inspect
import itertools
import subprocess
import sys
import tokenize
import typing
from pathlib import Path

import pytest

import backplane

PACKAGE = Path(backplane.__file__).parent
CORE = sorted([PACKAGE / "__init__.py", *PACKAGE.glob("_*.py"), *PACKAGE.glob("_loop/*.py")])

# The names that design.md fixes.
NAMES = [
    "Device",
    "Line",
    "DeviceID",
    "LinkMode",
    "Message",
    "Disconnected",
    "Shutdown",
    "Fault",
    "Dropped",
    "Failed",
    "Cascaded",
    "Cancelled",
    "Killed",
    "NoConnection",
    "LinkError",
    "DeviceDownError",
    "LinkDownError",
    "Crash",
    "PowerOffCrash",
    "CascadeCrash",
    "Watched",
    "Completed",
    "Messaged",
    "current_device",
]
CLASSES = [name for name in sorted(NAMES) if inspect.isclass(getattr(backplane, name))]
ALIASES = ["Fault", "Message", "Watched"]


def test_the_public_names_are_those_of_the_design() -> None:
    assert len(NAMES) == 24
    assert sorted(backplane.__all__) == sorted(NAMES)


def test_the_public_names_are_sorted_and_each_is_there_once() -> None:
    assert backplane.__all__ == sorted(set(backplane.__all__))


def test_nothing_else_is_public() -> None:
    public = {name for name in vars(backplane) if not name.startswith("_")}
    modules = {name for name in public if inspect.ismodule(getattr(backplane, name))}

    assert public - modules == set(NAMES)


def test_a_star_import_brings_the_public_names_and_no_others() -> None:
    space: dict[str, object] = {}
    exec("from backplane import *", space)

    assert set(space) - {"__builtins__"} == set(NAMES)


def test_a_name_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(AttributeError):
        backplane.Actor  # type: ignore[attr-defined]  # noqa: B018


def test_the_version_is_that_of_the_distribution() -> None:
    assert isinstance(backplane.__version__, str)
    assert [int(part) for part in backplane.__version__.split(".")[:2]] >= [0, 1]


def test_the_package_says_that_it_is_typed() -> None:
    assert (PACKAGE / "py.typed").exists()


# -- documentation --------------------------------------------------------------------


def public_members(cls: type) -> list[str]:
    return [
        name
        for base in cls.__mro__
        if base.__module__.startswith("backplane")
        for name, member in vars(base).items()
        if not name.startswith("_")
        and (inspect.isfunction(member) or isinstance(member, property | classmethod))
    ]


MEMBERS = [(cls, name) for cls in CLASSES for name in public_members(getattr(backplane, cls))]


@pytest.mark.parametrize("name", [*CLASSES, "current_device"])
def test_a_public_name_is_documented(name: str) -> None:
    doc = getattr(backplane, name).__doc__

    assert doc
    assert not doc.startswith(f"{name}("), "that is the signature, made by dataclass"
    assert doc.strip().splitlines()[0].endswith((".", ":"))


@pytest.mark.parametrize(("cls", "name"), MEMBERS)
def test_a_public_member_is_documented(cls: str, name: str) -> None:
    member = inspect.getattr_static(getattr(backplane, cls), name)

    assert inspect.getdoc(member)


def test_there_are_public_members_to_be_documented() -> None:
    assert {("Device", "link"), ("Line", "send"), ("Cascaded", "root")} <= set(MEMBERS)


@pytest.mark.parametrize("name", ALIASES)
def test_a_type_alias_stands_for_a_union(name: str) -> None:
    assert len(typing.get_args(getattr(backplane, name))) >= 2


@pytest.mark.parametrize(("cls", "name"), MEMBERS)
def test_the_annotations_of_a_public_member_can_be_resolved(cls: str, name: str) -> None:
    member = inspect.getattr_static(getattr(backplane, cls), name)
    function = getattr(member, "fget", None) or getattr(member, "__func__", member)

    assert "return" in typing.get_type_hints(function)


@pytest.mark.parametrize("name", CLASSES)
def test_a_public_class_is_found_under_a_module_that_exists(name: str) -> None:
    cls = getattr(backplane, name)

    assert getattr(sys.modules[cls.__module__], name) is cls


def test_the_link_modes_are_the_three_of_the_design() -> None:
    assert issubclass(backplane.LinkMode, enum.Flag)
    assert list(backplane.LinkMode.__members__) == ["MONITOR", "NOTIFY", "PEER"]


# -- size -----------------------------------------------------------------------------


def code_lines(path: Path) -> int:
    """The lines that hold code: no blank ones, no comments, no docstrings."""
    source = path.read_text()
    documented: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Expr(value=ast.Constant(value=str()), lineno=first, end_lineno=int(last)):
                documented.update(range(first, last + 1))
            case _:
                pass
    silent = {
        tokenize.COMMENT,
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENCODING,
        tokenize.ENDMARKER,
    }
    lines: set[int] = set()
    with path.open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            if token.type not in silent:
                lines.update(range(token.start[0], token.end[0] + 1))
    return len(lines - documented)


def test_lines_of_code_are_counted_without_comments_blanks_and_docstrings(tmp_path: Path) -> None:
    sample = tmp_path / "sample.py"
    sample.write_text(
        '"""A module.\n\nWith a docstring."""\n\n# A comment.\nx = [\n    1,  # one\n]\n\n\n'
        'def f() -> str:\n    """Doc."""\n    return """a\nb"""\n'
    )

    assert code_lines(sample) == 3 + 1 + 2


def test_the_core_can_be_read_in_one_sitting() -> None:
    """Without what upper tiers alone need: jobs, guards, alarms, outposts. Under 1,250 lines."""
    sizes = {
        str(path.relative_to(PACKAGE)): code_lines(path)
        for path in CORE
        if not path.name.endswith(
            ("_job.py", "_guard.py", "_outlast.py", "_alarm.py", "_outpost.py")
        )
    }

    assert sum(sizes.values()) <= 1250, sizes


@pytest.mark.parametrize("path", CORE, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_of_the_core_has_at_most_four_hundred_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400


# -- layers ---------------------------------------------------------------------------


@pytest.mark.parametrize("path", CORE, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_of_the_core_can_be_imported_on_its_own(path: Path) -> None:
    module = ".".join(["backplane", *path.relative_to(PACKAGE).with_suffix("").parts])

    subprocess.run(
        [sys.executable, "-W", "error", "-c", f"import {module.removesuffix('.__init__')}"],
        check=True,
        timeout=60,
    )


# -- the upper tiers ------------------------------------------------------------------

TIERS = ["lowlevel", "otp", "otp.system", "supervisor", "testing"]


def public(tier: str) -> dict[str, object]:
    module = importlib.import_module(f"backplane.{tier}")
    return {name: getattr(module, name) for name in module.__all__}


@pytest.mark.parametrize("tier", TIERS)
def test_the_names_of_a_tier_are_there_once_and_classes_and_functions_say_what_they_do(
    tier: str,
) -> None:
    module = importlib.import_module(f"backplane.{tier}")
    names = public(tier)

    assert len(names) == len(module.__all__)
    for name, thing in names.items():
        if inspect.isclass(thing) or inspect.isfunction(thing):
            assert thing.__doc__, name


def test_no_name_means_two_things_in_two_tiers() -> None:
    core: dict[str, object] = {name: getattr(backplane, name) for name in backplane.__all__}
    tiers = [core, *map(public, TIERS)]
    for one, other in itertools.combinations(tiers, 2):
        assert {name for name in one.keys() & other.keys() if one[name] is not other[name]} == set()


@pytest.mark.parametrize("tier", TIERS)
def test_errors_of_a_tier_are_shown_under_their_public_names(tier: str) -> None:
    for name, thing in public(tier).items():
        if inspect.isclass(thing) and issubclass(thing, BaseException):
            module = importlib.import_module(thing.__module__)
            assert getattr(module, name) is thing
            assert "._" not in thing.__module__, thing
