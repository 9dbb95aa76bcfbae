"""What a supervisor is told: good values are kept, bad ones never reach a run."""

from __future__ import annotations

import functools
import math
import pickle
from collections.abc import AsyncIterator, Awaitable, Iterator
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backplane.supervisor import (
    BRUTAL_KILL,
    AutoShutdown,
    Backoff,
    Budget,
    ChildSpec,
    Restart,
    SpecError,
    Strategy,
    Supervisor,
    SupervisorError,
)


async def worker(*args: object) -> None: ...


async def says_started(*, task_status: Any) -> None: ...


class AsyncCallable:
    async def __call__(self) -> None: ...

    async def method(self) -> None: ...

    def plain_method(self) -> Awaitable[None]:
        return self.method()


ABSURD = [-1, math.nan, -math.inf, "5", None, True, 10**400]


def test_the_defaults_are_those_of_otp_and_elixir() -> None:
    spec = ChildSpec("a", worker)
    assert spec.restart is Restart.PERMANENT
    assert spec.grace == 5
    assert not spec.significant
    assert not spec.is_supervisor
    assert ChildSpec("a", worker, is_supervisor=True).grace == math.inf
    assert ChildSpec("a", worker, is_supervisor=True, shutdown=2).grace == 2
    assert ChildSpec("a", worker, shutdown=BRUTAL_KILL).grace is BRUTAL_KILL
    assert Budget() == Budget(3, 5.0)


def test_a_spec_is_a_value_that_can_be_changed_into_another() -> None:
    spec = ChildSpec("a", worker)
    other = spec.but(id="b", restart=Restart.TRANSIENT)
    assert (other.id, other.run, other.restart) == ("b", worker, Restart.TRANSIENT)
    assert other != spec == ChildSpec("a", worker)
    assert pickle.loads(pickle.dumps(Backoff())) == Backoff()
    with pytest.raises(SpecError):
        spec.but(restart="always")


@pytest.mark.parametrize("name", ["", None, 5, b"a"])
def test_an_id_must_be_a_string_with_something_in_it(name: Any) -> None:
    with pytest.raises(SpecError, match="id of a child"):
        ChildSpec(name, worker)


def test_a_coroutine_is_refused_and_closed() -> None:
    coroutine = worker()
    with pytest.raises(SpecError, match="pass the function and its args, not a call of it"):
        ChildSpec("a", coroutine)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="cannot reuse"):
        coroutine.send(None)


def plain() -> None: ...


def generator() -> Iterator[None]:
    yield


async def async_generator() -> AsyncIterator[None]:
    yield


class Awaited:
    def __await__(self) -> Iterator[None]:
        return iter(())


class Made:
    def __new__(cls) -> Any:
        return worker()


class Maker(type):
    def __call__(cls) -> Any:
        return worker()


class MadeByAnother(metaclass=Maker):
    pass


@functools.wraps(worker)
def wrapped() -> Awaitable[None]:
    return worker()


@pytest.mark.parametrize(
    "run",
    [
        None, 5, "worker", plain, lambda: None, generator, async_generator, object, AsyncCallable,
        functools.partial(AsyncCallable), Supervisor,
    ],
)  # fmt: skip
def test_what_is_no_async_function_is_refused(run: Any) -> None:
    with pytest.raises(SpecError, match="must be an async function"):
        ChildSpec("a", run)
    with pytest.raises(SpecError, match="must be an async function"):
        Supervisor([run])


def test_a_class_is_refused_by_its_name() -> None:
    with pytest.raises(SpecError) as caught:
        ChildSpec("a", AsyncCallable)  # type: ignore[arg-type]

    assert str(caught.value) == (
        "child 'a': run must be an async function; AsyncCallable is a class"
    )


@pytest.mark.parametrize(
    "run",
    [
        worker,
        functools.partial(worker, 1),
        functools.partial(functools.partial(worker, 1), 2),
        AsyncCallable(),
        AsyncCallable().method,
        wrapped,
        AsyncCallable().plain_method,
        anext,  # written in C: nothing is known of its parameters
        Awaited,
        Made,
        MadeByAnother,
    ],
)
def test_all_kinds_of_async_functions_are_taken(run: Any) -> None:
    assert not ChildSpec("a", run).reports_start
    Supervisor([run])


def test_a_function_that_takes_task_status_reports_its_start() -> None:
    assert ChildSpec("a", says_started).reports_start
    assert ChildSpec("a", functools.partial(says_started)).reports_start
    assert ChildSpec("a", Supervisor().run).reports_start


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("args", [1]),
        ("restart", "permanent"),
        ("significant", 1),
        ("is_supervisor", None),
        ("budget", (3, 5)),
        ("backoff", 1.0),
        ("exhausted", "park"),
        *[("shutdown", value) for value in ABSURD if value is not None],
        *[("start_timeout", value) for value in ABSURD],
        *[("watchdog", value) for value in [*ABSURD, math.inf] if value is not None],
    ],
)
def test_a_bad_field_of_a_child_is_named(field: str, value: Any) -> None:
    with pytest.raises(SpecError, match=field) as caught:
        ChildSpec("a", worker, **{field: value})
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, SupervisorError)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("strategy", "one_for_all"),
        ("max_restarts", -1),
        ("max_restarts", 10**400),
        ("max_seconds", 0),
        ("auto_shutdown", True),
        ("backoff", 3),
        ("exhausted", "park"),
        ("name", ""),
        ("name", None),
        ("subscribers", [5]),
        *[("stop_timeout", value) for value in ABSURD],
    ],
)
def test_a_bad_setting_of_a_supervisor_is_named(field: str, value: Any) -> None:
    with pytest.raises(SpecError, match=field.rstrip("s")):
        Supervisor([worker], **{field: value})


def test_no_two_children_have_the_same_id() -> None:
    with pytest.raises(SpecError, match="two children have the id 'worker'"):
        Supervisor([worker, ChildSpec("worker", says_started)])
    with pytest.raises(SpecError, match="two children have the id 'supervisor'"):
        Supervisor([Supervisor(), Supervisor()])


def test_a_significant_child_must_not_be_permanent() -> None:
    with pytest.raises(SpecError, match="significant and permanent"):
        ChildSpec("a", worker, significant=True)


def test_a_significant_child_needs_a_supervisor_that_shuts_down() -> None:
    spec = ChildSpec("a", worker, significant=True, restart=Restart.TRANSIENT)
    with pytest.raises(SpecError, match="auto_shutdown NEVER"):
        Supervisor([spec])
    Supervisor([spec], auto_shutdown=AutoShutdown.ANY_SIGNIFICANT, strategy=Strategy.ONE_FOR_ALL)


@pytest.mark.parametrize(
    "fields",
    [
        {"initial": -1},
        {"factor": 0.5},
        {"initial": 2, "maximum": 1},
        {"jitter": 1.5},
        {"jitter": -0.1},
        {"reset_after": -1},
        *[{"initial": value} for value in ABSURD],
        *[{"factor": value} for value in [*ABSURD, math.inf]],
        *[{"maximum": value} for value in [*ABSURD, math.inf]],
    ],
)
def test_a_backoff_that_makes_no_sense_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match=list(fields)[-1]):
        Backoff(**fields)


finite = st.floats(0, allow_infinity=False, allow_nan=False)


@given(
    initial=finite,
    factor=st.floats(1, allow_infinity=False) | st.integers(1, 10**300),
    maximum=finite,
    jitter=st.floats(0, 1),
    share=st.floats(0, 1),
    attempt=st.integers(1, 10**6),
)
def test_a_wait_lies_within_its_bounds_whatever_the_numbers(
    initial: float, factor: float, maximum: float, jitter: float, share: float, attempt: int
) -> None:
    maximum = max(initial, maximum)
    backoff = Backoff(initial, factor, maximum, jitter)
    whole = backoff.delay(attempt, 0)
    assert initial <= whole <= maximum
    assert whole * (1 - jitter) <= backoff.delay(attempt, share) <= whole
    assert 0 <= backoff.delay(attempt) <= whole
    assert whole <= backoff.delay(attempt + 1, 0)


def test_waits_grow_by_the_factor_up_to_the_maximum() -> None:
    backoff = Backoff(initial=1, factor=3, maximum=20, jitter=0)
    assert [backoff.delay(attempt) for attempt in (1, 2, 3, 4, 5, 10**9)] == [1, 3, 9, 20, 20, 20]


@pytest.mark.parametrize("kwargs", [[], {1: 2}, "text"], ids=repr)
def test_arguments_by_name_are_a_mapping_of_names(kwargs: Any) -> None:
    with pytest.raises(SpecError, match="kwargs must map names to values"):
        ChildSpec("it", anyio.sleep, kwargs=kwargs)
