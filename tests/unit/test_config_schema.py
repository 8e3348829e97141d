from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from worker.config_schema import config_json_schema
from worker.documents import parse_document, read_document

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "tc-worker.yml"


@pytest.fixture(scope="module")
def validator() -> Any:
    schema = config_json_schema()
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "worker: {capacity: {$env: N}, killGrace: {$file: x}, shutdown: {onTerm: {$env: X}}}",
        "plugins: {disabled: [{$env: X}, livelog]}",
        "webhooks: {port: {$env: P}}",
    ],
)
def test_valid_configs(validator: Any, text: str) -> None:
    assert list(validator.iter_errors(parse_document(text, "x"))) == []


def test_the_example_is_valid(validator: Any) -> None:
    assert list(validator.iter_errors(read_document(EXAMPLE))) == []


@pytest.mark.parametrize(
    "text",
    [
        "rotUrl: x",
        "worker: {capacity: many}",
        "worker: {killGrace: soon}",
        "worker: {capacity: {$env: N, x: 1}}",
        "engine: nativ",
        "engines: {nativ: {}}",
        "plugins: {livelogs: {}}",
        "plugins: {disabled: [livelogs]}",
        "plugins: {maxRunTime: {maxRunTime: soon}}",
    ],
)
def test_invalid_configs(validator: Any, text: str) -> None:
    assert list(validator.iter_errors(parse_document(text, "x")))
