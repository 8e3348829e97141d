"""The tables of docs/commands.md and docs/configuration.md have what the code has, no more and no less."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import get_args

import click
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

import engines.registry
import plugins.registry
from worker.cli import commands, common
from worker.config import ConfigFile
from worker.quantities import parse_duration, parse_size

DOCS = Path(__file__).parents[2] / "docs"


def rows(page: str) -> dict[str, str]:
    """The lines of a page's tables, by the code that begins them."""
    return dict(re.findall(r"^\| `([^`]+)` \| (.*) \|$", (DOCS / page).read_text(), re.M))


def test_every_command_is_listed_with_its_options() -> None:
    def leaves(group: click.Group, prefix: str = "") -> Iterator[tuple[str, click.Command]]:
        for name, command in group.commands.items():
            if isinstance(command, click.Group):
                yield from leaves(command, f"{prefix}{name} ")
            else:
                yield prefix + name, command

    listed = {re.match(r"[a-z ]*[a-z]", usage)[0]: usage for usage in rows("commands.md") if usage[0].isalpha()}  # type: ignore[index]  # matches
    assert listed.keys() == dict(leaves(commands)).keys()
    for name, command in leaves(commands):
        options = {option for parameter in command.params for option in parameter.opts if option.startswith("--")}
        assert set(re.findall(r"--[a-z]+", listed[name])) == options - {"--config"}, name
        assert "--config" in options


def test_every_exit_code_is_listed() -> None:
    codes = {str(value) for name, value in vars(common).items() if name.isupper() and type(value) is int}
    assert {usage for usage in rows("commands.md") if usage.isdigit()} == codes


def keys(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, FieldInfo]]:
    """The keys that hold values, with their whole paths."""
    for name, field in model.model_fields.items():
        path = prefix + (field.alias or name)
        found = [each for each in (field.annotation, *get_args(field.annotation)) if isinstance(each, type)]
        inner = next((each for each in found if issubclass(each, BaseModel)), None)
        if inner is None:
            yield path, field
        else:
            yield from keys(inner, f"{path}.")


def test_every_key_of_the_config_is_listed_with_its_default() -> None:
    known = dict(keys(ConfigFile, ""))
    del known["engines"]  # what is in it is listed
    for kind, registry in (("engines", engines.registry), ("plugins", plugins.registry)):
        for name in registry.names():
            known |= keys(registry.load(name).Config, f"{kind}.{name}.")
    listed = rows("configuration.md")
    assert listed.keys() == known.keys()
    for path, field in known.items():
        cell = listed[path].partition(" | ")[0]
        if not field.is_required() and field.default not in (None, PydanticUndefined, Path()):
            assert _read(cell.strip("`"), field.default) == field.default, path
        else:
            assert not cell.startswith("`"), f"{path} has no default of its own: say in words what happens without"


def _read(cell: str, default: object) -> object:
    value = yaml.safe_load(cell)
    if isinstance(default, timedelta):
        return parse_duration(value)
    return parse_size(value) if isinstance(default, int) and isinstance(value, str) else value


def test_every_promise_is_held_by_a_test_that_exists() -> None:
    tests = DOCS.parent / "tests"
    held = re.findall(r"\| `([a-z0-9_/]+\.py)::(test_\w+)` \|$", (DOCS / "reliability.md").read_text(), re.M)
    missing = [f"{file}::{name}" for file, name in held if f"def {name}(" not in (tests / file).read_text()]
    assert held
    assert not missing
