"""The JSON Schema of config files, with the sections of the engines and plugins that are installed."""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import models_json_schema

import engines.registry
import plugins.registry
from worker.config import ConfigFile, PluginsConfig
from worker.quantities import QuantityJsonSchema
from worker.schema import Document, JsonObject

_REFERENCE = "#/$defs/Reference"


def config_json_schema() -> JsonObject:
    """The schema. Raises ImportError where an engine or a plugin is broken."""
    engine_models = {name: engines.registry.load(name).Config for name in engines.registry.names()}
    plugin_models = {name: plugins.registry.load(name).Config for name in plugins.registry.names()}
    models: list[type[Document]] = [ConfigFile, PluginsConfig, *engine_models.values(), *plugin_models.values()]
    # Together, since different models may have one name.
    references, schema = models_json_schema(
        [(model, "validation") for model in dict.fromkeys(models)], by_alias=True, schema_generator=QuantityJsonSchema
    )
    definitions: JsonObject = schema["$defs"]

    def definition(model: type[Document]) -> JsonObject:
        found: JsonObject = definitions[references[model, "validation"]["$ref"].removeprefix("#/$defs/")]
        return found

    top = definition(ConfigFile)["properties"]
    top["engine"]["enum"] = list(engine_models)
    top["engines"] |= {
        "properties": {name: references[model, "validation"] for name, model in engine_models.items()},
        "additionalProperties": False,
    }
    sections = {name: references[model, "validation"] for name, model in plugin_models.items()}
    plugin_section = definition(PluginsConfig)
    plugin_section["properties"] |= sections
    plugin_section["additionalProperties"] = False
    plugin_section["properties"]["disabled"]["items"]["enum"] = list(plugin_models)
    definitions = {name: _with_references(value) for name, value in definitions.items()}
    definitions["Reference"] = _reference()
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "tc-worker config",
        **references[ConfigFile, "validation"],
        "$defs": definitions,
    }


def _with_references(schema: JsonObject) -> JsonObject:
    """`schema` in which every plain value may be a reference instead."""
    changed: JsonObject = dict(schema)
    if "properties" in schema:
        changed["properties"] = {name: _value(inner) for name, inner in schema["properties"].items()}
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            changed[key] = _value(schema[key])
    return changed


def _value(schema: Any) -> Any:
    if "$ref" in schema or schema.get("type") in {"object", "array"}:
        return _with_references(schema)
    told = {key: schema[key] for key in ("title", "description", "default") if key in schema}
    rest = {key: value for key, value in schema.items() if key not in told}
    return {**told, "anyOf": [rest, {"$ref": _REFERENCE}]}


def _reference() -> JsonObject:
    return {
        "description": "A value from an environment variable, or from a file relative to the config file.",
        "oneOf": [
            {
                "type": "object",
                "properties": {name: {"type": "string"}},
                "required": [name],
                "additionalProperties": False,
            }
            for name in ("$env", "$file")
        ],
    }
