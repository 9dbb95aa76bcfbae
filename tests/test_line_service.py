"""The line service is killed all the time, part by part, and every acknowledgement is kept."""

from __future__ import annotations

import ast
import importlib
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.from_thread
import pytest
from anyio.lowlevel import checkpoint

from backplane.supervisor import ChildInfo, ChildSpec, ChildState, Supervisor

EXAMPLES = Path(__file__).parents[1] / "examples"
COMMAND = [sys.executable, "-X", "dev", "-W", "error"]

both_loops = pytest.mark.parametrize("loop", ["asyncio", "trio"])
only_posix = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Import a module of the example's, as the example does."""
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module


@contextmanager
def started(*command: str | Path) -> Iterator[subprocess.Popen[str]]:
    """A process that is killed at the end if it has not ended by itself."""
    with subprocess.Popen(
        [*COMMAND, *command],
        cwd=EXAMPLES,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def ended(process: subprocess.Popen[str], already: str = "") -> subprocess.CompletedProcess[str]:
    stdout, stderr = process.communicate(timeout=60)
    # asyncio's debug mode notes each step that took long, as on a busy machine.
    stderr = re.sub(r"^Executing .* took .* seconds\n", "", stderr, flags=re.MULTILINE)
    return subprocess.CompletedProcess(process.args, process.returncode, already + stdout, stderr)


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    with started(*command) as process:
        return ended(process)


def run_until(
    text: str, *command: str | Path, seconds: str = "1"
) -> subprocess.CompletedProcess[str]:
    """Run it for some time; for longer if the machine stood still, so that some text is missing."""
    result = run(*command, "--seconds", seconds)
    if re.search(text, result.stdout, re.MULTILINE) is None:
        result = run(*command, "--seconds", "10")
    return result


ACKNOWLEDGED = r"^acknowledged +[1-9]"


def read_until_busy(process: subprocess.Popen[str]) -> str:
    """What a service prints until its first progress that is not nothing."""
    assert process.stdout is not None
    text = ""
    while not re.search(r"^[1-9]\d* entries", text, re.MULTILINE):
        line = process.stdout.readline()
        assert line, "it ended before it had served anything"
        text += line
    return text


def figures(stdout: str) -> dict[str, int]:
    """The first number of each row of a summary."""
    rows = re.findall(r"^(  )?([a-z]+(?: [a-z]+)?) +(\d+)", stdout, re.MULTILINE)
    found: dict[str, int] = {}
    section = ""
    for indent, name, number in rows:
        section = section if indent else name
        found[f"{section}: {name}" if indent else name] = int(number)
    return found


def parts_of(found: dict[str, int], section: str) -> int:
    return sum(number for name, number in found.items() if name.startswith(f"{section}: "))


def assert_agrees(result: subprocess.CompletedProcess[str]) -> None:
    found = figures(result.stdout)
    known = re.search(r"^journal +(\d+) entries, (\d+) of", result.stdout, re.MULTILINE)
    assert result.stderr == ""
    assert known is not None, result.stdout
    assert int(known[1]) >= int(known[2]) == found["acknowledged"] > 0
    assert result.stdout.endswith("\naccounting       agrees\n")
    assert result.returncode == 0


def documented() -> str:
    """What the docstring of the program says that it prints."""
    source = (EXAMPLES / "line_service.py").read_text("utf-8")
    return textwrap.dedent((ast.get_docstring(ast.parse(source)) or "").partition("Prints:\n")[2])


def sections(text: str) -> list[str]:
    """The names of the rows of a summary, but for those that are part of another."""
    names = re.findall(r"^([a-z]+(?: [a-z]+)?)  ", text, re.MULTILINE)
    return names[names.index("requests") :]


@both_loops
def test_a_service_that_is_killed_all_the_time_keeps_every_acknowledged_request(loop: str) -> None:
    busy = r"^reconnects +[1-9](.*\n)*kills +[1-9](.*\n)*restarts +[1-9](.*\n)*acknowledged +[1-9]"
    result = run_until(busy, "line_service.py", "--loop", loop, "--kills", "20", seconds="2")

    found = figures(result.stdout)
    assert_agrees(result)
    assert found["requests"] >= found["acknowledged"]
    assert found["kills"] == parts_of(found, "kills") > 0
    assert found["restarts"] == parts_of(found, "restarts") > 0
    assert found["reconnects"] > 0
    assert sections(result.stdout) == sections(documented())


def test_a_run_that_ends_by_itself_has_answered_every_request() -> None:
    result = run_until(ACKNOWLEDGED, "line_service.py", "--kills", "0", "--clients", "5")

    found = figures(result.stdout)
    assert_agrees(result)
    assert found["kills"] == 0
    assert re.search(
        r"^acknowledged +\d+ ADD, as the clients know; 0 not$", result.stdout, re.MULTILINE
    )


@only_posix
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@both_loops
def test_a_signal_stops_the_service_in_order(loop: str, number: signal.Signals) -> None:
    with started("line_service.py", "--loop", loop, "--seconds", "100") as process:
        text = read_until_busy(process)
        process.send_signal(number)
        result = ended(process, text)

    assert_agrees(result)


@pytest.mark.skipif(sys.platform != "linux", reason="looks for the process in /proc")
@both_loops
def test_the_service_lives_on_when_its_clients_are_killed(loop: str, tmp_path: Path) -> None:
    options = ["--kills", "0", "--loop", loop, "--seconds", "100", "--directory", str(tmp_path)]
    log = tmp_path / "clients-c1.log"
    with started("line_service.py", *options) as process:
        text = read_until_busy(process)
        threads = Path(f"/proc/{process.pid}/task").iterdir()
        (child,) = [pid for each in threads for pid in (each / "children").read_text().split()]
        os.kill(int(child), signal.SIGKILL)
        while not log.exists() or "acked c1." not in log.read_text():  # the next ones are served
            time.sleep(0.05)
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        result = ended(process, text)

    assert_agrees(result)
    assert re.search(r"^  clients +1: 1 x ChildProcessError$", result.stdout, re.MULTILINE)


def test_a_service_that_writes_less_than_it_acknowledges_is_found_out() -> None:
    careless = """
import line_journal, line_service, sys
append = line_journal.Journal.append
def forget_one(self, life, lines):
    append(self, life, b"".join(lines.splitlines(keepends=True)[:-1]))
line_journal.Journal.append = forget_one
sys.exit(line_service.main())
"""

    result = run_until("acknowledged, and is lost", "-c", careless, "--kills", "0")

    assert "was acknowledged, and is lost\n" in result.stdout
    assert re.search(r"\naccounting       DISAGREES in \d+ cases\n$", result.stdout)
    assert result.returncode == 1


def test_a_service_that_cannot_be_mended_gives_up_and_says_so() -> None:
    hopeless = """
import line_journal, line_service, sys
async def fail(self):
    raise RuntimeError("no disk")
line_journal.Journal.next_batch = fail
sys.exit(line_service.main())
"""

    result = run("-c", hopeless, "--seconds", "60", "--kills", "0")

    assert re.search(r"^gave up +store on flusher: more than", result.stdout, re.MULTILINE)
    assert re.search(r"^gave up +line service on store: ", result.stdout, re.MULTILINE)
    assert result.returncode == 1


@pytest.mark.parametrize(
    ("option", "value", "complaint"),
    [
        ("--seconds", "0", "--seconds must be at least 0.1, not 0.0"),
        ("--clients", "0", "--clients must be at least 1, not 0"),
        ("--kills", "nan", "--kills must be at least 0, not nan"),
        ("--loop", "curio", "invalid choice: 'curio'"),
    ],
)
def test_a_senseless_option_is_refused(option: str, value: str, complaint: str) -> None:
    result = run("line_service.py", option, value)

    assert complaint in result.stderr
    assert result.stdout == ""
    assert result.returncode == 2


# -- the accounting -------------------------------------------------------------------

LOG = """\
sent a-1 x 5
sent b-1 x 2
acked a-1 5 0.001
sent a-2 y 1
again ADD x 2 b-1
acked b-1 7 0.100
read x 7 0.002
lost IncompleteRead
"""
ENTRIES = [("a-1", "x", 5), ("b-1", "x", 2)]


def audit_of(
    module: Callable[[str], Any],
    directory: Path,
    entries: list[tuple[str, str, int]],
    log: str = LOG,
    end: bytes = b"",
) -> Any:
    """The audit of a journal and one log."""
    entry = module("line_journal").Entry
    journal, books = directory / "journal", directory / "log"
    journal.write_bytes(b"".join(entry(*each).encode() for each in entries) + end)
    books.write_text(log, "utf-8")
    return module("line_audit").audit(journal, [books])


@pytest.mark.parametrize(
    ("entries", "end", "known"),
    [
        (ENTRIES, b"", 2),
        ([*ENTRIES, ("a-2", "y", 1)], b"", 2),
        (ENTRIES, b"00000000 a-2 y", 2),
    ],
    ids=["acknowledged", "and one that was not", "and the torn end of one"],
)
def test_what_was_not_acknowledged_may_be_in_the_journal_or_not(
    module: Callable[[str], Any],
    tmp_path: Path,
    entries: list[tuple[str, str, int]],
    end: bytes,
    known: int,
) -> None:
    result = audit_of(module, tmp_path, entries, end=end)

    assert result.agrees
    assert result.problems == []
    assert (result.entries, result.known) == (len(entries), known)
    assert (result.clients.reads, result.clients.retried) == (1, 1)


@pytest.mark.parametrize(
    ("entries", "problem"),
    [
        (ENTRIES[:1], "b-1 was acknowledged, and is lost"),
        ([*ENTRIES, ENTRIES[1]], "b-1 is in the journal 2 times"),
        ([*ENTRIES, ("a-2", "y", 1), ("a-2", "y", 1)], "a-2 is in the journal 2 times"),
        ([*ENTRIES, ("c-1", "x", 1)], "c-1 is in the journal, and nobody sent it so"),
        ([ENTRIES[0], ("b-1", "x", 3)], "b-1 is in the journal, and nobody sent it so"),
        (ENTRIES[::-1], "a-1 made 7, and was told 5"),
    ],
    ids=["lost", "doubled", "doubled, not acknowledged", "invented", "changed", "out of order"],
)
def test_a_journal_that_was_tampered_with_is_found_out(
    module: Callable[[str], Any],
    tmp_path: Path,
    entries: list[tuple[str, str, int]],
    problem: str,
) -> None:
    result = audit_of(module, tmp_path, entries)

    assert not result.agrees
    assert problem in result.problems


def test_a_damaged_line_of_the_journal_is_found_out(
    module: Callable[[str], Any], tmp_path: Path
) -> None:
    result = audit_of(module, tmp_path, ENTRIES, end=b"00000000 a-2 y 1\n")

    assert result.problems == ["line 3 of the journal is damaged: b'00000000 a-2 y 1'"]


def test_what_a_client_found_wrong_is_a_problem(
    module: Callable[[str], Any], tmp_path: Path
) -> None:
    result = audit_of(module, tmp_path, ENTRIES, LOG + "wrong x is 5 after it was 7\n")

    assert result.problems == ["x is 5 after it was 7"]


def test_a_journal_of_a_real_run_from_which_a_line_was_taken_is_found_out(
    module: Callable[[str], Any], tmp_path: Path
) -> None:
    directory = tmp_path / "first"
    options = ["--kills", "4", "--directory"]
    result = run("line_service.py", "--seconds", "1", *options, directory)
    if re.search(ACKNOWLEDGED, result.stdout, re.MULTILINE) is None:  # it stood still meanwhile
        directory = tmp_path / "second"
        result = run("line_service.py", "--seconds", "10", *options, directory)
    journal, logs = directory / "journal", list(directory.glob("clients-*.log"))
    lines = journal.read_bytes().splitlines(keepends=True)
    before = module("line_audit").audit(journal, logs)
    acknowledged = before.clients.acked
    first = next(i for i, line in enumerate(lines) if line.split()[1].decode() in acknowledged)
    journal.write_bytes(b"".join(lines[:first] + lines[first + 1 :]))

    after = module("line_audit").audit(journal, logs)

    assert_agrees(result)
    assert before.agrees
    lost = lines[first].split()[1].decode()
    assert f"{lost} was acknowledged, and is lost" in after.problems


# -- the journal ----------------------------------------------------------------------


@pytest.fixture
def journal(module: Callable[[str], Any], tmp_path: Path) -> Any:
    path = tmp_path / "journal"
    path.touch()
    return module("line_journal").Journal(path, module("line_monkey").Traps())


def test_a_torn_end_is_cut_off_when_the_journal_is_read(
    module: Callable[[str], Any], journal: Any
) -> None:
    entry = module("line_journal").Entry
    whole = b"".join(entry(*each).encode() for each in ENTRIES)
    for size in range(1, len(entry("c-1", "x", 10).encode())):
        journal.path.write_bytes(whole + entry("c-1", "x", 10).encode()[:size])

        entries = journal.recover(journal.life)

        assert entries == ENTRIES
        assert journal.path.read_bytes() == whole


def test_a_write_of_a_flusher_that_was_replaced_is_refused(journal: Any) -> None:
    journal.life = 2

    with pytest.raises(RuntimeError, match="was replaced"):
        journal.append(1, b"late\n")
    with pytest.raises(RuntimeError, match="was replaced"):
        journal.recover(1)

    assert journal.path.read_bytes() == b""


@pytest.mark.anyio
async def test_an_id_is_added_once_however_often_it_is_sent(
    module: Callable[[str], Any], journal: Any
) -> None:
    entry, totals = module("line_journal").Entry("a-1", "x", 5), []

    async def add() -> None:
        totals.append(await journal.add(entry))

    with anyio.fail_after(30):
        async with Supervisor([ChildSpec("flusher", journal.flush)]):
            async with anyio.create_task_group() as tg:
                for _ in range(3):
                    tg.start_soon(add)
            await add()
            await journal.add(module("line_journal").Entry("a-2", "x", 1))
            await add()

    assert totals == [5, 5, 5, 5, 5]
    assert journal.totals == {"x": 6}
    assert len(journal.path.read_bytes().splitlines()) == 2


@pytest.mark.anyio
async def test_a_retry_that_overtakes_its_first_try_is_not_added_twice(
    module: Callable[[str], Any], journal: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry, append = module("line_journal").Entry("a-1", "x", 5), journal.append
    writing, go_on = anyio.Event(), threading.Event()

    def append_slowly(life: int, lines: bytes) -> None:
        anyio.from_thread.run_sync(writing.set)
        go_on.wait(30)
        append(life, lines)

    monkeypatch.setattr(journal, "append", append_slowly)
    with anyio.fail_after(30):
        async with (
            Supervisor([ChildSpec("flusher", journal.flush)]),
            anyio.create_task_group() as tg,
        ):
            tg.start_soon(journal.add, entry)
            await writing.wait()
            tg.start_soon(journal.add, entry)
            while not journal.waiting:  # nobody takes it: the flusher is writing
                await checkpoint()
            go_on.set()

    assert journal.path.read_bytes() == entry.encode()


def is_running_again(child: ChildInfo) -> bool:
    return child.restarts > 0 and child.state is ChildState.RUNNING


@pytest.mark.anyio
async def test_a_flusher_that_dies_in_mid_write_loses_nothing_that_was_acknowledged(
    module: Callable[[str], Any], journal: Any
) -> None:
    make = module("line_journal").Entry

    with anyio.fail_after(30):
        async with Supervisor([ChildSpec("flusher", journal.flush)], subscribers=[]) as supervisor:
            await journal.add(make("a-1", "x", 5))
            journal.traps.lay("flusher", "in mid-write", "raises")
            with anyio.move_on_after(0):
                await journal.add(make("a-2", "x", 1))
            while not is_running_again(supervisor.which_child("flusher")):
                await checkpoint()
            total = await journal.add(make("a-2", "x", 1))

    assert (total, journal.cuts) == (6, 1)
    assert journal.recover(journal.life) == [("a-1", "x", 5), ("a-2", "x", 1)]
