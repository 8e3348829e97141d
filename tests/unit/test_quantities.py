from __future__ import annotations

import re
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from pydantic import ValidationError

from worker.quantities import (
    Duration,
    QuantityJsonSchema,
    Size,
    format_duration,
    format_size,
    parse_duration,
    parse_size,
)
from worker.schema import Document, problems_of


class Limits(Document):
    grace: Duration = timedelta(seconds=5)
    memory: Size = 2**30


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        (0, 0),
        (90, 90),
        (0.25, 0.25),
        ("90 seconds", 90),
        ("1 second", 1),
        ("500 ms", 0.5),
        ("500 milliseconds", 0.5),
        ("2 min", 120),
        ("1.5 h", 5400),
        ("4 hours", 14400),
        ("4hours", 14400),
        ("2 days", 172800),
        ("1 week", 604800),
    ],
)
def test_durations_are_numbers_or_words(written: object, seconds: float) -> None:
    assert Limits.model_validate({"grace": written}).grace == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("written", "size"),
    [
        (0, 0),
        (17, 17),
        ("17 bytes", 17),
        ("1 B", 1),
        ("10 GiB", 10 * 2**30),
        ("500 MB", 500_000_000),
        ("2 KB", 2000),
        ("2 kB", 2000),
        ("1.5KiB", 1536),
        ("1 TiB", 2**40),
    ],
)
def test_sizes_are_numbers_or_words(written: object, size: int) -> None:
    assert Limits.model_validate({"memory": written}).memory == size


@pytest.mark.parametrize(
    "written",
    [-1, -0.5, True, None, [], "", "5", "soon", "5 fortnights", "-5 s", "1e3 s", "5 s\n", float("nan"), float("inf")],
)
def test_a_bad_duration_is_refused_with_what_was_expected(written: object) -> None:
    with pytest.raises(ValidationError) as caught:
        Limits.model_validate({"grace": written})
    [problem] = problems_of(caught.value)
    assert problem.path == "grace"
    assert problem.message.startswith("expected a duration: a number of seconds, or words such as")


@pytest.mark.parametrize("written", [-1, True, 1.5, None, [], "", "5", "5 G", "5 gigabytes", "-5 B", "5 B\n"])
def test_a_bad_size_is_refused_with_what_was_expected(written: object) -> None:
    with pytest.raises(ValidationError) as caught:
        Limits.model_validate({"memory": written})
    [problem] = problems_of(caught.value)
    assert problem.path == "memory"
    assert problem.message.startswith("expected a size: a whole number of bytes, or words such as")


@pytest.mark.parametrize("written", ["999999999999 days", 1e300, 10**30])
def test_a_duration_beyond_all_bounds_is_refused(written: object) -> None:
    with pytest.raises(ValueError, match="two million years"):
        parse_duration(written)


@given(st.timedeltas(min_value=timedelta()))
def test_a_duration_comes_back_from_its_words(duration: timedelta) -> None:
    assert parse_duration(format_duration(duration)) == duration


@given(st.integers(min_value=0, max_value=2**59) | st.integers(0, 2**12).map(lambda n: n * 2**30))
def test_a_size_comes_back_from_its_words(size: int) -> None:
    assert parse_size(format_size(size)) == size


@given(st.from_regex(re.compile(r"[0-9]{1,3}(\.[0-9])? ?[A-Za-z]{1,5}"), fullmatch=True) | st.floats() | st.integers())
def test_the_json_schema_accepts_what_the_model_accepts(written: object) -> None:
    schema = Draft202012Validator(Limits.model_json_schema())
    for name in ("grace", "memory"):
        try:
            Limits.model_validate({name: written})
        except ValidationError as error:
            accepted = "two million years" in str(error)
        else:
            accepted = True
        if isinstance(written, float) and not (abs(written) < 1e9 and written % 1):
            continue  # JSON has neither NaN nor infinity, and to JSON Schema 1.0 is an integer.
        assert schema.is_valid({name: written}) == accepted


def test_words_are_short() -> None:
    assert format_duration(timedelta(hours=4)) == "4 hours"
    assert format_duration(timedelta(days=1)) == "1 day"
    assert format_duration(timedelta(seconds=90)) == "90 seconds"
    assert format_duration(timedelta(milliseconds=250)) == "0.25 seconds"
    assert format_duration(timedelta()) == "0 seconds"
    assert format_size(500_000_000) == "500 MB"
    assert format_size(10 * 2**30) == "10 GiB"
    assert format_size(17) == "17 bytes"
    assert format_size(0) == "0 bytes"


def test_defaults_are_shown_in_words() -> None:
    properties = Limits.model_json_schema(schema_generator=QuantityJsonSchema)["properties"]
    assert properties["grace"]["default"] == "5 seconds"
    assert properties["memory"]["default"] == 2**30
    assert Limits().model_dump(mode="json", by_alias=True) == {"grace": "5 seconds", "memory": "1 GiB"}
