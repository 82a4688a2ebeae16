"""``docs/schema`` says what ``--json`` prints: every document of the golden files is of the schema of its command."""

from __future__ import annotations

import json
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer
from referencing import Registry, Resource

from cfs_tags.cli.main import COMMANDS, app
from support.documents import Document, documents

FOLDER = Path(__file__).parent.parent.parent / "docs/schema"
SCHEMAS = {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}


def with_json() -> list[str]:
    group: Any = typer.main.get_command(app)
    commands = {name: group.get_command(None, name) for name in COMMANDS}
    return [name for name, command in commands.items() if any("--json" in param.opts for param in command.params)]


def parts(schema: Any) -> Iterator[dict[str, Any]]:
    """A schema and all that is in it."""
    if isinstance(schema, dict):
        yield schema
    for value in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
        yield from parts(value)


def closed(schema: dict[str, Any]) -> dict[str, Any]:
    """The same without room for keys that it does not name: programs have to bear new keys, and this test does not."""
    schema = deepcopy(schema)
    for part in parts(schema):
        if isinstance(part.get("properties"), dict):
            part.setdefault("additionalProperties", False)
    return schema


CLOSED = {name: closed(schema) for name, schema in SCHEMAS.items()}
REGISTRY: Registry[Any] = Registry().with_resources(
    (f"{name}.json", Resource.from_contents(schema)) for name, schema in CLOSED.items()
)


def problems(document: Document) -> list[str]:
    name = "error" if "error" in document.value else document.value["command"]
    validator = jsonschema.Draft202012Validator(CLOSED[name], registry=REGISTRY)
    return [f"{document.place}: {error.json_path}: {error.message}" for error in validator.iter_errors(document.value)]


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_schema_is_one(name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMAS[name])


def test_every_command_that_prints_json_has_a_schema() -> None:
    assert sorted({*with_json(), "common", "error"}) == sorted(SCHEMAS)


def test_every_document_of_the_golden_files_is_of_its_schema() -> None:
    every = list(documents())

    assert len(every) > 1000
    assert {document.value["command"] for document in every if "command" in document.value} >= {"list", "migrate", "gc", "fsck"}
    assert [line for document in every for line in problems(document)] == []


def test_a_document_with_another_key_or_type_is_found() -> None:
    resolved = {"name": "a", "digest": f"sha256:{'0' * 64}", "object": "0" * 128}
    right = {"schema": 1, "command": "resolve", "result": resolved, "warnings": []}

    assert problems(Document((), right, "")) == []
    for wrong in ({**resolved, "more": 1}, {**resolved, "digest": "sha256:0"}, {**resolved, "object": None}, {"name": "a"}):
        assert problems(Document((), {**right, "result": wrong}, "")) != []
