"""The examples run, and print what their docstrings say; the main job loses no line."""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
BOTH = ("asyncio", "trio")
# What each example is called with. Those for one loop only take no argument.
ARGUMENTS = {
    "add_to_asyncio.py": [""],
    "add_to_trio.py": [""],
    "gen_server.py": BOTH,
    "keep_alive.py": BOTH,
    "supervised_web_app.py": BOTH,
    "supervisor.py": BOTH,
    "trio_in_a_thread.py": [""],
    "two_nodes.py": BOTH,
    "web_app.py": BOTH,
}
POISON = b"caf\xe9 na\xefve\n"

both_backends = pytest.mark.parametrize("backend", BOTH)


def run(*command: str | Path, timeout: float = 100) -> subprocess.CompletedProcess[str]:
    """Run Python with every check that it has; nothing may be heard of them."""
    result = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", *command],
        cwd=EXAMPLES,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        encoding="utf-8",
        timeout=timeout,
        check=False,
    )
    # asyncio's debug mode notes each step that took long, as on a busy machine.
    result.stderr = re.sub(
        r"^Executing .* took .* seconds\n", "", result.stderr, flags=re.MULTILINE
    )
    return result


def docstring(name: str) -> str:
    return ast.get_docstring(ast.parse((EXAMPLES / name).read_text("utf-8"))) or ""


def expected(name: str) -> str:
    """What the docstring of an example says that it prints."""
    lines = docstring(name).partition("\nPrints:\n")[2].splitlines()
    return "".join(line.removeprefix("    ") + "\n" for line in lines)


@pytest.mark.parametrize(
    ("name", "argument"), [(name, each) for name, some in ARGUMENTS.items() for each in some]
)
def test_an_example_prints_what_its_docstring_says(name: str, argument: str) -> None:
    result = run(name, *filter(None, [argument]))

    assert result.stderr == ""
    assert result.stdout == expected(name)
    assert result.returncode == 0


LINE_SERVICE = ["audit", "clients", "journal", "monkey", "parts", "service", "view"]
"""The parts of the example that ``test_line_service.py`` runs."""
FETCH_SERVICE = ["audit", "parts", "server", "service", "view"]
"""The parts of the example that ``test_fetch_service.py`` runs."""


def test_every_example_is_run() -> None:
    files = {path.name for path in EXAMPLES.glob("*.py")}

    main_jobs = {"process_files.py", "lines_of_files.py", "word_index.py"}
    main_jobs |= {f"line_{part}.py" for part in LINE_SERVICE}
    main_jobs |= {f"fetch_{part}.py" for part in FETCH_SERVICE}
    assert files == {*ARGUMENTS, *main_jobs}


def without_the_new_lines(name: str, directory: Path) -> Path:
    """The program as it was before the three lines were added."""
    source = (EXAMPLES / name).read_text("utf-8")
    before, new = re.subn(r".*  # new\n", "", source)
    before, changed = re.subn(r"# was: (.*?)  # noqa.*", r"\1", before)
    assert (new, changed) == (3, 1)
    path = directory / name
    path.write_text(before, "utf-8")
    return path


def test_without_its_three_lines_the_asyncio_program_hangs(tmp_path: Path) -> None:
    program = without_the_new_lines("add_to_asyncio.py", tmp_path)

    with pytest.raises(subprocess.TimeoutExpired):
        run(program, timeout=3)


def test_without_its_three_lines_the_trio_program_returns_half_of_it(tmp_path: Path) -> None:
    program = without_the_new_lines("add_to_trio.py", tmp_path)

    assert "average returned 20.0\n" in run(program).stdout


@both_backends
def test_the_web_app_turns_unhealthy_under_a_server(backend: str, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # which of two HTTP clients it would rather have
        from starlette.testclient import TestClient
    spec = importlib.util.spec_from_file_location("web_app", EXAMPLES / "web_app.py")
    assert spec is not None
    assert spec.loader is not None
    web_app = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(web_app)
    watched = tmp_path / "watched"
    watched.mkdir()
    web_app.app.state.directory = watched
    deadline = time.monotonic() + 30

    with TestClient(web_app.app, backend=backend) as client:  # type: ignore[arg-type]
        healthy = client.get("/health")
        watched.rmdir()
        while (ill := client.get("/health")).status_code == 200:
            assert time.monotonic() < deadline

    assert healthy.json() == {"watcher": "alive"}
    assert ill.status_code == 503
    assert "FileNotFoundError" in ill.json()["watcher"]


# -- the main job ---------------------------------------------------------------------


def process(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return run("process_files.py", *arguments)


def summary(stdout: str) -> dict[str, int]:
    """The figures of a summary."""
    patterns = {
        "files": r"^files +(\d+)$",
        "lines": r"^lines +(\d+) = ",
        "indexed": r"^lines .* = (\d+) indexed",
        "aside": r" (\d+) set aside$",
        "words": r"^words +(\d+),",
        "different": r", (\d+) different$",
        "at_a_time": r"^workers +(\d+) at a time",
        "workers": r"^workers .* (\d+) in all$",
        "undecodable": r"^died of +(\d+) x UnicodeDecodeError",
        "killed": r"^died of +(\d+) x Killed",
        "left": r"^left +(\d+) lines",
        "files_left": r"^left .* (\d+) files$",
    }
    found = {name: re.search(pattern, stdout, re.MULTILINE) for name, pattern in patterns.items()}
    return {name: int(match[1]) for name, match in found.items() if match}


def count_a_third_way(*files: Path) -> dict[str, int]:
    """Count bytes, as neither the program nor its own second count does."""
    lines = [line for file in files for line in file.read_bytes().split(b"\n")]
    missing = sum(file.read_bytes().endswith(b"\n") or not file.read_bytes() for file in files)
    words = [
        word for line in lines if line.isascii() for word in re.findall(rb"[0-9A-Za-z_]+", line)
    ]
    aside = sum(not line.isascii() for line in lines)
    total = len(lines) - missing
    return {
        "files": len(files),
        "lines": total,
        "indexed": total - aside,
        "aside": aside,
        "words": len(words),
        "different": len(set(words)),
    }


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Two files, of which some lines, and the very last one, cannot be read."""
    first, second = tmp_path / "first.txt", tmp_path / "second.txt"
    good = [b"line %d of the_first file\r\n" % number for number in range(600)]
    first.write_bytes(
        b"".join(POISON + line if not n % 100 else line for n, line in enumerate(good))
    )
    second.write_bytes(b"one\x0ctwo\n\n" * 100 + POISON * 3 + b"the end\n" + POISON.strip())
    return [first, second]


@both_backends
def test_the_main_job_agrees_with_a_third_count(backend: str, files: list[Path]) -> None:
    result = process("--backend", backend, *files)

    figures = summary(result.stdout)
    assert result.stderr == ""
    assert result.stdout.endswith("independent count: agrees\n")
    assert result.returncode == 0
    assert figures.items() >= count_a_third_way(*files).items()
    assert figures["undecodable"] == figures["aside"] == 10
    assert figures["workers"] == figures["at_a_time"] + 10


@both_backends
def test_the_main_job_loses_no_line_when_workers_are_killed(
    backend: str, files: list[Path]
) -> None:
    result = process("--backend", backend, "--kill-every", "0.002", "--workers", "3", *files)

    figures = summary(result.stdout)
    assert result.stderr == ""
    assert result.stdout.endswith("independent count: agrees\n")
    assert result.returncode == 0
    assert figures.items() >= count_a_third_way(*files).items()
    assert figures["undecodable"] == figures["aside"] == 10
    assert figures["killed"] > 0
    assert figures["workers"] == 3 + 10 + figures["killed"]


def test_the_main_job_reads_pythons_own_library_by_default() -> None:
    library = sorted(Path(os.__file__).parent.glob("*.py"))

    result = process("--max-files", "4")

    assert summary(result.stdout).items() >= count_a_third_way(*library[:4]).items()
    assert result.stdout.endswith("independent count: agrees\n")
    assert result.returncode == 0


def test_pythons_own_library_has_lines_that_kill_workers() -> None:
    library = Path(os.__file__).parent

    result = process(library / "functools.py", "--list")

    figures = summary(result.stdout)
    assert figures["aside"] == figures["undecodable"] > 0
    assert result.returncode == 0


def test_the_main_job_prints_what_its_docstring_shows(files: list[Path]) -> None:
    def shape(text: str) -> str:
        return re.sub(r"\d+", "N", re.sub(r"first at .*", "first at PLACE", text))

    assert shape(process(*files).stdout) == shape(expected("process_files.py"))


def test_the_lines_set_aside_can_be_listed(files: list[Path]) -> None:
    stdout = process("--list", files[1]).stdout

    assert [line for line in stdout.splitlines() if line.startswith(f"{files[1]}:")] == [
        f"{files[1]}:{number}: {text!r}"
        for number, text in [(201, POISON), (202, POISON), (203, POISON), (205, POISON.strip())]
    ]


def test_utf_8_files_lose_only_what_is_not_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "menu.txt"
    path.write_bytes("caf\xe9 na\xefve \u2615\n".encode() * 5 + POISON)

    figures = summary(process("--encoding", "utf-8", path).stdout)

    assert (figures["indexed"], figures["words"], figures["aside"]) == (5, 10, 1)


@pytest.mark.parametrize(
    ("content", "lines", "words"),
    [
        (b"", 0, 0),
        (b"\n", 1, 0),
        (b"no newline at the end", 1, 5),
        (b"a carriage return\ris no end of a line\r\n", 1, 9),
        (b"nul\0 form\x0cfeed \x1c\x85", 1, 0),
        (bytes(range(256)) * 100, 101, 0),
        (b"huge " * 1_000_000 + b"\n" + b"small", 2, 1_000_001),
    ],
    ids=["empty", "a newline", "unended", "carriage return", "controls", "binary", "huge"],
)
def test_unusual_files_are_counted_to_the_last_line(
    content: bytes, lines: int, words: int, tmp_path: Path
) -> None:
    path = tmp_path / "unusual.txt"
    path.write_bytes(content)

    result = process(path)

    figures = summary(result.stdout)
    assert result.stderr == ""
    assert result.returncode == 0
    assert figures.items() >= count_a_third_way(path).items()
    assert (figures["lines"], figures["words"]) == (lines, words)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems want names to be text")
def test_a_file_name_need_not_be_text(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"na\xefve.txt")
    path.write_bytes(POISON)

    result = process("--list", path)

    assert "na\\udcefve.txt:1" in result.stdout
    assert result.returncode == 0


def assert_refused(result: subprocess.CompletedProcess[str], *complaints: str) -> None:
    """It said why, as a usage error, and did nothing else."""
    assert result.returncode == 2
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    for complaint in complaints:
        assert complaint in result.stderr


def test_missing_files_are_all_told_before_any_is_read(files: list[Path], tmp_path: Path) -> None:
    missing, lost = tmp_path / "missing.txt", tmp_path / "lost.txt"

    result = process(missing, files[0], lost)

    assert_refused(result, *(f"{path}: No such file or directory" for path in (missing, lost)))


def test_a_directory_stands_for_its_py_files(files: list[Path], tmp_path: Path) -> None:
    code = [file.rename(file.with_suffix(".py")) for file in files]

    result = process(tmp_path)

    assert summary(result.stdout).items() >= count_a_third_way(*code).items()


def test_a_directory_without_py_files_is_refused(files: list[Path], tmp_path: Path) -> None:
    assert_refused(process(tmp_path), f"{tmp_path}: no .py file in this directory")


@pytest.mark.skipif(sys.platform == "win32", reason="links and pipes are special there")
def test_what_cannot_be_read_or_not_twice_is_refused(tmp_path: Path) -> None:
    loop, pipe = tmp_path / "loop", tmp_path / "pipe"
    loop.symlink_to(loop)
    os.mkfifo(pipe)

    result = process(loop, pipe)

    assert_refused(result, f"{loop}: Too many levels of symbolic links", f"{pipe}: not a regular")


@pytest.mark.skipif(getattr(os, "geteuid", lambda: 0)() == 0, reason="root may read everything")
def test_a_file_that_must_not_be_read_is_refused(files: list[Path]) -> None:
    files[0].chmod(0)

    assert_refused(process(*files), f"{files[0]}: Permission denied")


@pytest.mark.parametrize(
    ("option", "value", "complaint"),
    [
        ("--workers", "0", "--workers must be above 0, not 0"),
        ("--workers", "two", "invalid int value: 'two'"),
        ("--max-files", "-1", "--max-files must be above 0, not -1"),
        ("--kill-every", "nan", "--kill-every must be above 0, not nan"),
        ("--backend", "curio", "invalid choice: 'curio'"),
        ("--encoding", "utf-16", "invalid choice: 'utf-16'"),
    ],
)
def test_a_senseless_option_is_refused(option: str, value: str, complaint: str) -> None:
    assert_refused(process(option, value), complaint)


@pytest.mark.skipif(sys.platform != "linux", reason="needs a file that opens and cannot be read")
def test_a_file_that_fails_while_it_is_read_is_told_and_the_others_are_counted(
    files: list[Path],
) -> None:
    result = process(files[0], "/proc/self/mem", files[1])

    figures = summary(result.stdout)
    assert {**figures, "files": 2}.items() >= count_a_third_way(*files).items()
    assert "cannot read /proc/self/mem: Failed(OSError(5, 'Input/output error'))" in result.stdout
    assert result.returncode == 1


def test_the_main_job_gives_up_when_the_budget_is_spent(files: list[Path]) -> None:
    result = process("--restarts", "4", *files)

    figures = summary(result.stdout)
    assert figures["aside"] == figures["undecodable"] >= 5
    assert (
        "independent count: not made, gave up after 5 faults, the last of worker" in result.stdout
    )
    assert result.returncode == 1


def test_a_job_that_loses_a_line_is_found_out(files: list[Path]) -> None:
    careless = """
import process_files, sys
take, taken = process_files.Job.take, 0
async def take_one_for_nothing(self, desk):
    global taken
    taken += 1
    if taken == 50:
        await take(self, desk)
    return await take(self, desk)
process_files.Job.take = take_one_for_nothing
sys.exit(process_files.main())
"""

    result = run("-c", careless, *files)

    assert result.stdout.endswith("independent count: DOES NOT AGREE\n")
    assert result.returncode == 1


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals")
@both_backends
def test_ctrl_c_stops_the_main_job_in_order(backend: str, tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    path.write_bytes(b"one two three\n" * 500_000)
    master, slave = os.openpty()

    with subprocess.Popen(
        [
            sys.executable,
            "-X",
            "dev",
            "-W",
            "error",
            "process_files.py",
            "--backend",
            backend,
            path,
        ],
        cwd=EXAMPLES,
        stdout=subprocess.PIPE,
        stderr=slave,
        encoding="utf-8",
    ) as job:
        os.close(slave)
        terminal = b""
        while not re.search(rb"[1-9]\d* lines indexed", terminal):
            terminal += os.read(master, 1000)
        job.send_signal(signal.SIGINT)
        stdout, _ = job.communicate(timeout=60)
    os.set_blocking(master, False)
    with contextlib.suppress(OSError):  # Linux says so when the other side is closed
        while more := os.read(master, 1000):
            terminal += more
    os.close(master)

    figures = summary(stdout)
    assert job.returncode == 130
    assert stdout.endswith("independent count: not made, stopped by Ctrl-C\n")
    assert 0 < figures["indexed"] < 500_000
    assert figures["words"] == 3 * figures["indexed"]
    assert (figures["aside"], figures["workers"], figures["files_left"]) == (0, 8, 1)
    assert b"Traceback" not in terminal
