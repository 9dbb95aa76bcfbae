"""Each benchmark file runs to its end, on each loop that is asked for, and leaves no case out.

The figures are not looked at: a shared machine's say nothing.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted((ROOT / "benchmarks").glob("bench_*.py"))
LOOPS = os.environ.get("BENCHMARK_LOOPS", "asyncio").split()
"""`.ci/run` has the others run beside the rest of the tests, since they take minutes."""

pytestmark = pytest.mark.benchmark


def run(file: Path, *options: str, path: Path = ROOT) -> str:
    """Run a benchmark; what is in ``path`` can be imported, and comes first."""
    paths = os.pathsep.join(dict.fromkeys([str(path), str(ROOT)]))
    done = subprocess.run(
        [sys.executable, str(file), *options],
        env={**os.environ, "PYTHONPATH": paths, "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        encoding="utf-8",
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    assert "Warning" not in done.stderr, done.stderr
    return done.stdout


def test_there_is_a_benchmark_of_the_core() -> None:
    assert "bench_core.py" in [file.name for file in FILES]


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_quick_run_measures_every_case(file: Path, loop: str) -> None:
    pytest.importorskip(loop)
    names = run(file, "--list").split()

    printed = run(file, "--quick", "--loop", loop)

    headings = [line.split(":")[0] for line in printed.splitlines()]
    assert names
    assert [name for name in names if name not in headings] == []
    assert "Against the aims" in printed


def test_the_core_has_the_17_cases_of_the_seed() -> None:
    names = run(ROOT / "benchmarks" / "bench_core.py", "--list").split()

    assert len([name for name in names if name.startswith("device.")]) == 11
    assert len([name for name in names if name.startswith("line.")]) == 6


def test_the_tables_for_a_readme_and_the_file_of_figures_name_every_contender(
    tmp_path: Path,
) -> None:
    figures = tmp_path / "figures.json"

    printed = run(
        ROOT / "benchmarks" / "bench_core.py",
        *("--quick", "--only", "device.create", "--markdown", "--json", str(figures)),
    )

    assert "| `device.create_destroy` | backplane |" in printed
    assert "| asyncio.Future |" in printed
    assert '"asyncio.Future"' in figures.read_text()


def test_there_is_a_benchmark_of_the_supervisors() -> None:
    names = run(ROOT / "benchmarks" / "bench_supervisor.py", "--list").split()

    assert {"restart", "restart.big_window", "one_for_all.10", "start_stop.10000", "memory"} < set(
        names
    )


def test_a_peer_of_the_supervisors_is_measured_or_said_not_to_be_installed() -> None:
    file = ROOT / "benchmarks" / "bench_supervisor.py"

    printed = run(file, "--quick", "--only", "start.")

    peers = next(line for line in printed.splitlines() if line.startswith("peers:"))
    for name in ("aiotools", "otpylib", "mode-streaming", "lapinbeam", "casty"):
        rows = [line for line in printed.splitlines() if line.startswith(f"  {name}")]
        assert bool(rows) != (f"{name} not installed" in peers)


def test_there_is_a_benchmark_of_servers_and_processes() -> None:
    names = run(ROOT / "benchmarks" / "bench_otp.py", "--list").split()

    assert {"call", "call.10", "cast", "ring.1000", "spawn.10000", "self_messages"} < set(names)
    assert {"memory.server", "memory.process", "ping_pong", "ping_pong.100"} < set(names)


def test_ours_is_the_first_in_each_case_of_servers() -> None:
    printed = run(ROOT / "benchmarks" / "bench_otp.py", "--quick", "--only", "ping_pong")

    lines = printed.splitlines()
    firsts = [lines[i + 1] for i, line in enumerate(lines) if line.startswith("ping_pong")]
    assert len(firsts) == 2
    assert all(line.startswith("  backplane") for line in firsts)


def test_there_is_a_benchmark_of_nodes() -> None:
    names = run(ROOT / "benchmarks" / "bench_bridge.py", "--list").split()

    assert {"call.tcp", "call.64.unix", "tell.tcp", "gen_call", "gen_call.64"} < set(names)
    assert {"death.first", "death.last", "process.runs", "process.done"} < set(names)


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
def test_ours_is_the_first_in_each_case_of_nodes_and_not_alone(loop: str) -> None:
    file = ROOT / "benchmarks" / "bench_bridge.py"

    printed = run(file, "--quick", "--only", "call.", "--loop", loop)

    lines = printed.splitlines()
    headings = [i for i, line in enumerate(lines) if line.startswith("call.")]
    assert len(headings) == 4
    for i in headings:
        assert lines[i + 1].startswith("  backplane")
        assert lines[i + 2].startswith(f"  {loop} ")


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
def test_a_peer_of_the_servers_is_measured_or_said_to_be_left_out(loop: str) -> None:
    file = ROOT / "benchmarks" / "bench_otp.py"

    printed = run(file, "--quick", "--only", "call", "--loop", loop)

    lines = printed.splitlines()
    peers = next(line for line in lines if line.startswith("peers:"))
    left_out = next((line for line in lines if line.startswith("left out:")), "")
    for name in ("triotp", "otpylib", "fauxtp", "aioerl", "pykka", "thespian", "xoscar"):
        rows = [line for line in lines if line.startswith((f"  {name} ", f"  {name},"))]
        missing = f"{name} not installed" in peers or f"{name} from all" in left_out
        assert bool(rows) != missing


@pytest.mark.parametrize(
    ("module", "said"),
    [
        ("raise ImportError('not today')", "all: it cannot be imported: ImportError('not today')"),
        ("", "ping_pong.100: it fails: AttributeError"),
    ],
    ids=["import", "use"],
)
def test_a_peer_that_fails_is_left_out_and_said_to_fail(
    tmp_path: Path, module: str, said: str
) -> None:
    (tmp_path / "pykka.py").write_text(module)
    (tmp_path / "pykka-0.dist-info").mkdir()
    (tmp_path / "pykka-0.dist-info" / "METADATA").write_text("Name: pykka\nVersion: 0\n")

    printed = run(
        ROOT / "benchmarks" / "bench_otp.py",
        *("--quick", "--only", "ping_pong.", "--markdown"),
        path=tmp_path,
    )

    assert "pykka 0" in printed
    assert f"pykka from {said}" in printed
    assert "| pykka" not in printed
