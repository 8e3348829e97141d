from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.documents import BadDocument, parse_document

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(st.dictionaries(st.text(), VALUES), st.sampled_from([None, 2, "\t"]))
def test_json_is_read_as_it_is(document: dict[str, object], indent: int | str | None) -> None:
    assert parse_document(json.dumps(document, indent=indent), "x") == document


def test_dates_stay_text() -> None:
    assert parse_document("a: 2026-01-31\nb: 2026-01-31T00:00:00Z", "x") == {
        "a": "2026-01-31",
        "b": "2026-01-31T00:00:00Z",
    }


def test_nothing_is_an_empty_object() -> None:
    assert parse_document("# nothing\n", "x") == {}


def test_merge_keys_work() -> None:
    assert parse_document("base: &b {x: 1, y: 2}\nown: {<<: *b, y: 3}", "x")["own"] == {"x": 1, "y": 3}


@pytest.mark.parametrize("text", ['{"a": 1, "a": 2}', "a: 1\na: 2"])
def test_a_name_may_be_there_once(text: str) -> None:
    with pytest.raises(BadDocument, match="a is there twice"):
        parse_document(text, "x")
