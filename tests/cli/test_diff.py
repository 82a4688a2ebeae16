"""``diff`` as it is typed: what it prints, in which form, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from jsonschema import Draft202012Validator

from cfs_tags import Repository
from cfs_tags.repo import images
from cfs_tags.tags.names import resolve
from support.images import Layer, build_artifact, build_image, directory, file, random_bytes, symlink
from support.importing import import_image

if TYPE_CHECKING:
    from cli.conftest import Run

ROOT = Path(__file__).parent.parent.parent
WEB, DB = "quay.io/apps/web:1", "quay.io/apps/db:2"
HOSTILE = "evil\x1b[31m\nname"


@pytest.fixture
def pair(repo: Path, tmp_path: Path) -> None:
    """``one`` and ``two``: images whose names of files are hostile, and packages of each kind."""

    def database(version: str, *more: str) -> Layer:
        names = (
            "usr",
            *(f"var/lib/pacman/local/{name}-{version}-1/desc" for name in ("lib-c", "only", *more)),
            f"usr/lib/python3.13/site-packages/demo-{version}.dist-info/RECORD",
            f"usr/lib/modules/{version}/vmlinuz",
        )
        lists = [file(f"var/lib/dpkg/info/{name}.list", f"/{version}\n") for name in ("same:amd64", *more)]
        return Layer([directory("usr"), *lists, *(file(name, version) for name in names[1:])])

    layout = tmp_path / "layout"
    build_image(layout, "one", [database("1"), Layer([file("usr/x", random_bytes("x", 100)), symlink("usr/l", "x")])])
    hostile = Layer([file("usr/x", random_bytes("y", 1500)), file(f"usr/{HOSTILE}", "1"), symlink("usr/l", "y")])
    build_image(layout, "two", [database("2", "more"), hostile], {"config": {"Env": ["A=1"], "Labels": {HOSTILE: HOSTILE}}})
    build_artifact(layout, "artifact", [("text/plain", b"content")])
    for name in ("one", "two", "artifact"):
        import_image(repo, f"oci:{layout}:{name}", name)


@pytest.mark.usefixtures("pair")
def test_the_document_is_as_its_schema_says(run: Run) -> None:
    schema = json.loads((ROOT / "docs/schema/diff.json").read_text())
    Draft202012Validator.check_schema(schema)
    validator = Draft202012Validator(schema)

    for words in ((WEB, DB), ("one", "two"), (WEB, WEB), ("artifact", "artifact"), ("two", WEB)):
        document = run("diff", *words, "--json", ok=True).json
        assert [error.message for error in validator.iter_errors(document)] == []


@pytest.mark.usefixtures("pair")
def test_packages_are_found_by_the_names_of_files(run: Run) -> None:
    found = {
        (row["kind"], row["name"]): (row["change"], row["old"], row["new"])
        for row in run("diff", "one", "two", "--json").result["packages"]
    }

    assert found == {
        ("dpkg", "same:amd64"): ("changed", None, None),
        ("dpkg", "more"): ("added", None, None),
        ("pacman", "lib-c"): ("changed", "1-1", "2-1"),
        ("pacman", "only"): ("changed", "1-1", "2-1"),
        ("pacman", "more"): ("added", None, "2-1"),
        ("python", "demo"): ("changed", "1", "2"),
        ("kernel", "kernel"): ("changed", "1", "2"),
    }


def is_directory(row: dict[str, Any]) -> bool:
    return {side["kind"] for side in (row["old"], row["new"]) if side is not None} == {"directory"}


@pytest.mark.usefixtures("pair")
def test_every_form_has_the_same_files(run: Run) -> None:
    files = run("diff", "one", "two", "--json").result["files"]
    paths = [f"{row['path']}/" if is_directory(row) else row["path"] for row in files]
    letters = {"added": "A", "removed": "D", "changed": "M"}

    shown = [path.replace("\x1b", "\\x1b").replace("\n", "\\n") for path in paths]
    assert run("diff", "one", "two", "--name-only", ok=True).lines == shown
    with_status = [f"{letters[row['change']]}\t{path}" for row, path in zip(files, shown, strict=True)]
    assert run("diff", "one", "two", "--name-status", ok=True).lines == with_status
    stat = run("diff", "one", "two", "--stat", ok=True).lines
    assert len(stat) == 1 + sum(not path.endswith("/") for path in paths)
    whole = run("diff", "one", "two", ok=True).out
    assert all(f" /{path}" in whole for path in shown)
    assert stat[-1] == run("diff", "one", "two", "--dirstat", ok=True).lines[-1] == whole.splitlines()[-1]


@pytest.mark.usefixtures("pair")
def test_foreign_text_is_escaped(run: Run) -> None:
    for words in ((), ("--stat",), ("--dirstat",), ("--name-only",), ("--name-status",)):
        assert b"\x1b" not in run("diff", "one", "two", *words, ok=True).raw


@pytest.mark.usefixtures("pair")
def test_differences_of_the_config_are_shown(run: Run) -> None:
    found = {
        (row["field"], row["key"]): (row["old"], row["new"]) for row in run("diff", "one", "two", "--json").result["config"]
    }

    assert found["env", "A"] == (None, "1")
    assert found["label", HOSTILE] == (None, HOSTILE)


def test_an_image_is_the_same_as_itself(run: Run) -> None:
    assert run("diff", WEB, WEB, ok=True).lines[-1] == "Nothing differs."
    assert run("diff", WEB, WEB, "--json").result["files"] == []


def test_paths_choose_what_is_compared(run: Run) -> None:
    assert run("diff", WEB, DB, "/usr/bin/web", "--name-status", ok=True).lines == ["D\tusr/bin/web"]
    assert run("diff", WEB, DB, "etc", "--name-status", ok=True).lines == []


def test_a_deployment_without_a_manifest_is_compared_by_its_image(run: Run, repo: Path) -> None:
    ids = sorted(path.name for path in (repo / "images").iterdir() if path.name != "refs")

    found = run("diff", f"@deployment/{ids[0][:12]}", f"@deployment/{ids[1]}", "--json").result

    assert found["old"]["manifest"] is None
    assert found["old"]["files_from"] == "erofs"
    assert found["files"]


@pytest.mark.usefixtures("pair")
@pytest.mark.parametrize(
    ("words", "status", "code"),
    [
        (("absent", WEB), 3, "tag-not-found"),
        ((WEB, "@deployment/0123456789"), 3, "target-not-found"),
        ((WEB, "@deployment/"), 2, "invalid-argument"),
        ((WEB, "artifact"), 4, "no-files"),
        ((WEB, DB, "--stat", "--name-only"), 2, "command-line"),
        ((WEB,), 2, "command-line"),
    ],
)
def test_images_that_cannot_be_compared_are_an_error(run: Run, words: tuple[str, ...], status: int, code: str) -> None:
    said = run("diff", *words, "--json")

    assert (said.status, said.json["error"]["code"]) == (status, code)


def test_layers_are_read_where_the_erofs_image_is_gone_and_it_is_said_where_they_are_too(run: Run, repo: Path) -> None:
    def lose(object_id: str) -> None:
        (repo / "objects" / object_id[:2] / object_id[2:]).unlink()

    with Repository.open(repo) as opened:
        image = images.load(opened, resolve(opened, WEB))
    whole = run("diff", WEB, DB, "--json").result
    for target in image.erofs.values():
        lose(target)
    of_layers = run("diff", WEB, DB, "--json").result
    assert (whole["old"]["files_from"], of_layers["old"]["files_from"]) == ("erofs", "layers")
    assert of_layers["files"] == whole["files"]

    assert image.layers[-1].object is not None
    lose(image.layers[-1].object)

    assert run("diff", WEB, DB, "--json").json["error"]["code"] == "missing-object"
