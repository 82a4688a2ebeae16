"""Help, documentation, and what is imported for which command."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import typer

from cfs_tags import errors
from cfs_tags.catalogue import CATALOGUE
from cfs_tags.cli.main import COMMANDS, SYNONYMS, app

if TYPE_CHECKING:
    from cli.conftest import Run

ROOT = Path(__file__).parent.parent.parent
REFERENCE = (ROOT / "docs/cli.md").read_text()
WEB = "quay.io/apps/web:1"


def module_of(name: str) -> str:
    return f"cfs_tags.cli.cmd_{name.replace('-', '_')}"


def command_of(name: str) -> Any:
    group: Any = typer.main.get_command(app)
    return group.get_command(None, name)


def section_of(name: str) -> str:
    """The section of the reference that describes a command."""
    found = re.search(rf"^### `?{name}\b.*?(?=^##|\Z)", REFERENCE, re.MULTILINE | re.DOTALL)
    assert found is not None, f"docs/cli.md has no section on {name}"
    return found[0]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_table_says_what_the_command_says_of_itself(name: str) -> None:
    described = inspect.getdoc(import_module(module_of(name)).command)

    assert described is not None
    assert described.splitlines()[0] == COMMANDS[name].help


def test_every_command_module_is_in_the_table() -> None:
    modules = {path.stem for path in (ROOT / "cfs_tags/cli").glob("cmd_*.py")}

    assert modules == {module_of(name).rpartition(".")[2] for name in COMMANDS}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_examples_and_exit_statuses(call: Run, name: str) -> None:
    text = call(name, "--help", ok=True).out

    assert text.startswith(f"Usage: cfs-tag {name} ")
    examples = text.partition("Examples:\n")[2].partition("\n\n")[0].splitlines()
    assert examples
    assert any(f"cfs-tag {name}" in line for line in examples)
    assert "Exit status: 0 done" in text


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_help(name: str) -> None:
    unexplained = [param.name for param in command_of(name).params if param.param_type_name == "option" and not param.help]

    assert unexplained == []


def test_the_help_of_the_group_names_every_command_under_its_heading(call: Run) -> None:
    text = call("--help", ok=True).out

    for name, line in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(line.help[:40])}", text, re.MULTILINE)
        assert f"\n{line.heading}:\n" in text


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_in_the_reference_with_all_its_options(name: str) -> None:
    section = section_of(name)
    common = REFERENCE.partition("## Options of all commands")[2].partition("\n## ")[0]

    for param in command_of(name).params:
        if param.param_type_name == "option":
            for option in param.opts:
                assert f"`{option}" in section or f"`{option}" in common, option


def test_the_reference_has_every_global_option(call: Run) -> None:
    group: Any = typer.main.get_command(app)

    for param in group.params:
        assert f"`{param.opts[0]}" in REFERENCE, param.opts


def test_the_reference_has_every_key_of_the_listings_and_of_show(run: Run) -> None:
    row = run("list", "--long", "--json").result[0]
    entry = run("create", "x", WEB, "--json").result
    shown = run("show", WEB, "--json").result
    logged = run("log", "--json").result[0]

    nested = [*entry["tags"], *entry["changes"], *shown["layers"], *shown["erofs"], shown["sizes"]]
    for keys in (row, entry, shown, logged, *nested, {"name_bytes": 0}):
        for key in keys:
            assert f"`{key}`" in REFERENCE, key


def test_the_reference_has_every_exit_status_and_leads_to_the_codes() -> None:
    table = REFERENCE.partition("## Exit status")[2].partition("\n## ")[0]

    statuses = {int(number) for number in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)}
    assert statuses == {0, *(getattr(errors, entry.family).status for entry in CATALOGUE.values())}
    assert "(errors.md)" in table


def test_a_mistyped_command_is_answered_with_similar_ones(call: Run) -> None:
    said = call("creat")

    assert said.status == 2
    assert "'create'" in said.err


@pytest.mark.parametrize("option", ["--version", "-V"])
def test_the_version_is_that_of_the_package(call: Run, option: str) -> None:
    from cfs_tags import __version__

    assert call(option, ok=True).out == f"cfs-tag {__version__}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_help_and_a_command_is_the_help_of_the_command(call: Run, name: str) -> None:
    assert call("help", name, ok=True).out == call(name, "--help", ok=True).out


def test_help_alone_is_that_of_the_program_and_of_no_command_an_error(call: Run) -> None:
    assert call("help", ok=True).out == call("--help", ok=True).out
    said = call("help", "lst")
    assert (said.status, said.out) == (2, "")
    assert "'list'" in said.err


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("rm", "delete"),
        ("ls", "list"),
        ("tag", "create"),
        ("pull", "import"),
        ("prune", "gc"),
        ("save", "export"),
        ("load", "import"),
        ("du", "df"),
    ],
)
def test_the_error_for_a_word_of_another_program_names_our_command(call: Run, typed: str, meant: str) -> None:
    said = call(typed, "x", "--json")
    assert (said.status, said.json["error"]["message"]) == (2, f"No such command {typed!r}. Did you mean {meant!r}?")


@pytest.mark.parametrize(
    ("typed", "said"),
    [("switch", "bootc switch"), ("upgrade", "bootc upgrade"), ("rollback", "bootc rollback"), ("undo", "migrate --undo")],
)
def test_the_error_for_what_another_program_does_names_it(call: Run, typed: str, said: str) -> None:
    assert f"'{said}'" in call(typed, "x").err


def test_no_synonym_is_a_command_and_each_means_one() -> None:
    assert not SYNONYMS.keys() & COMMANDS.keys()
    assert set(SYNONYMS.values()) <= COMMANDS.keys()


@pytest.mark.parametrize("words", [["list"], ["show", WEB], ["log"], ["create", "x", WEB]], ids=lambda words: words[0])
def test_the_options_of_the_program_may_stand_behind_the_command(call: Run, sysroot: Path, words: list[str]) -> None:
    for option in (("--repo", sysroot / "composefs"), ("--sysroot", sysroot)):
        before = call(*option, *words, "--json", ok=True).result
        behind = call(*words, *option, "--json", ok=True).result
        if words[0] != "create":
            assert behind == before
        else:
            assert behind["tags"][0]["done"] == "unchanged"


def test_options_before_and_behind_the_command_exclude_each_other_as_they_do_before(call: Run, sysroot: Path) -> None:
    said = call("--sysroot", sysroot, "list", "--user", "--json")
    assert (said.status, said.json["error"]["message"]) == (2, "--sysroot and --user exclude each other")


# -- imports -----------------------------------------------------------------------------------------------------------


def imported(*words: str) -> set[str]:
    """All modules that a call of the program has imported at its end."""
    code = "import sys; from cfs_tags.cli.main import main; status = main(sys.argv[1:]); print(*sys.modules, file=sys.stderr)"
    command = [sys.executable, "-c", f"{code}; sys.exit(status)", *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stderr.split())


def test_help_imports_no_command() -> None:
    assert {name for name in imported("--help") if name.startswith("cfs_tags.cli.cmd_")} == set()


@pytest.mark.parametrize("words", [["resolve", WEB], ["list"], ["list", "--format", "{name} {digest}"], ["log"]], ids=" ".join)
def test_a_look_up_imports_its_own_command_and_nothing_heavy(repo: Path, words: list[str]) -> None:
    modules = imported("--repo", str(repo), *words)

    assert {name for name in modules if name.startswith("cfs_tags.cli.cmd_")} == {module_of(words[0])}
    heavy = ("rich", "pydantic", "ctypes", "hashlib", "backports.zstd", "compression.zstd", "cfs_tags.tags.edit")
    assert modules.isdisjoint(heavy)


def test_create_imports_no_rich_and_no_ctypes(repo: Path) -> None:
    modules = imported("--repo", str(repo), "create", "x", WEB)

    assert modules.isdisjoint(("rich", "pydantic", "ctypes"))


def test_garbage_is_collected_again_when_a_command_runs() -> None:
    code = "import gc, sys; from cfs_tags.cli.main import SYNONYMS, main; before = gc.isenabled(); main(['--version'])"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; print(before, gc.isenabled())"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=30,
        check=True,
    )

    assert done.stdout.splitlines()[1] == "False True"
