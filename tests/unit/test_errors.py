"""The catalogue of errors, and every place that raises one."""

from __future__ import annotations

import ast
import pickle
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfs_tags import errors
from cfs_tags.catalogue import CATALOGUE, Entry
from cfs_tags.cli import hints
from cfs_tags.cli.hints import ADVICE_TEXTS
from cfs_tags.errors import CfsTagsError, FormatError, RefusedError, about
from support.raising import KINDS, Site, sites

ROOT = Path(__file__).parent.parent.parent
MODULES = [path for path in sorted((ROOT / "cfs_tags").rglob("*.py")) if path.name not in ("errors.py", "catalogue.py")]
SITES = [site for path in MODULES for site in sites(path)]

# facts that are no text
SHAPES: dict[str, st.SearchStrategy[Any]] = {
    **dict.fromkeys(
        ("line", "number", "entries", "offset", "errno", "exit_status", "objects", "bytes"), st.integers(0, 1 << 40)
    ),
    "seconds": st.floats(0, 1e6),
    "holders": st.lists(st.fixed_dictionaries({"pid": st.integers(1), "command": st.text(), "mode": st.text()})).map(tuple),
    "problems": st.lists(st.tuples(st.text(), st.lists(st.text()).map(tuple))).map(tuple),
    **dict.fromkeys(
        (
            "candidates",
            "refs",
            "near",
            "names",
            "platforms",
            "places",
            "missing",
            "notes",
            "images",
            "lost",
            "reasons",
            "features",
            "actions",
            "changes",
        ),
        st.lists(st.text(min_size=1), min_size=1).map(tuple),
    ),
}


def kind_of(entry: Entry) -> type[CfsTagsError]:
    return KINDS[entry.family]


@st.composite
def made(draw: st.DrawFn, code: str) -> CfsTagsError:
    entry = CATALOGUE[code]
    needed = [name for name in entry.names if name not in entry.defaults]
    chosen = needed + [name for name in entry.defaults if draw(st.booleans())]
    facts = {name: draw(SHAPES.get(name, st.text())) for name in chosen}
    return kind_of(entry)(code=code, **facts)


@pytest.mark.parametrize("code", CATALOGUE)
@given(data=st.data())
def test_any_facts_make_a_line_that_is_safe_to_print(code: str, data: st.DataObject) -> None:
    error = data.draw(made(code))

    assert str(error).isprintable()
    assert str(error)
    assert "{" not in str(CATALOGUE[code].cause)
    assert tuple(error.facts()) == CATALOGUE[code].names
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), again.code, again.facts()) == (type(error), code, error.facts())
    if "line" not in CATALOGUE[code].names:
        error.line = 7
        assert pickle.loads(pickle.dumps(error)).facts() == {**again.facts(), "line": 7}
        assert str(error).startswith("line 7: ")
    for said in (error.hint, hints.hint(error)):
        assert said is None or said


@pytest.mark.parametrize("code", CATALOGUE)
@given(data=st.data())
def test_a_fact_that_is_missing_or_unknown_is_refused_at_once(code: str, data: st.DataObject) -> None:
    entry = CATALOGUE[code]
    facts = data.draw(made(code)).facts()

    with pytest.raises(TypeError, match=f"{code} has no fact 'other'"):
        kind_of(entry)(code=code, **facts, other=1)
    for name in facts.keys() - entry.defaults.keys():
        with pytest.raises(TypeError, match=f"{code} needs the fact '{name}'"):
            kind_of(entry)(code=code, **{key: value for key, value in facts.items() if key != name})


@pytest.mark.parametrize(("kind", "code"), [(RefusedError, ""), (RefusedError, "no-such-code"), (RefusedError, "malformed")])
def test_a_code_that_a_family_does_not_have_is_refused_at_once(kind: type[CfsTagsError], code: str) -> None:
    with pytest.raises(TypeError, match="RefusedError has no code"):
        kind(code)


@pytest.mark.parametrize("site", SITES, ids=lambda site: str(Path(site.where).relative_to(ROOT)))
def test_every_place_that_raises_gives_a_code_of_its_family_and_the_facts_of_the_code(site: Site) -> None:
    entry = CATALOGUE[site.code]

    assert issubclass(site.kind, kind_of(entry))
    assert set(site.facts) <= set(entry.names)
    assert set(entry.names) - set(site.facts) <= entry.defaults.keys()


def test_every_code_is_raised_somewhere() -> None:
    assert {site.code for site in SITES} == CATALOGUE.keys()


def test_a_type_with_a_code_of_its_own_declares_the_facts_of_that_code() -> None:
    for kind in KINDS.values():
        if not kind.code:
            continue
        declared = {name for name in get_type_hints(kind) if name not in ("code", "status", "line")}
        assert declared == set(CATALOGUE[kind.code].names)
        assert KINDS[CATALOGUE[kind.code].family] is kind
        assert {name: getattr(kind, name) for name in declared if hasattr(kind, name)} == CATALOGUE[kind.code].defaults


def test_a_type_is_there_because_something_catches_it_or_reads_its_facts() -> None:
    """Another error is a code on a family."""
    source = "\n".join(path.read_text() for path in MODULES)
    for name, kind in KINDS.items():
        if kind.code and kind.code != "interrupted":  # it has an exit status of its own
            used = rf"except [^:]*\b{name}\b|isinstance\([^)]*\b{name}\b|suppress\([^)]*\b{name}\b|class \w+\({name}\)"
            assert re.search(used, source), name


# a sentence with an option or a command of ours
TYPED = re.compile(r"(?<![-\w])--[a-z][\w-]*|\bcfs-tag (?!-)")


def sentences(path: Path) -> Iterator[tuple[str, str]]:
    """Literals of a module that are sentences: no docstrings, and no words for other programs."""
    code = ast.parse(path.read_text())
    other = [node for node in ast.walk(code) if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "run"]
    other += [node for node in ast.walk(code) if isinstance(node, ast.Expr)]  # calls have their own literals, docstrings none
    left_out = {id(node.value) for node in other if isinstance(node, ast.Expr)}
    left_out |= {id(word) for node in other if isinstance(node, ast.Call) for word in node.args}
    for node in ast.walk(code):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in left_out:
            yield f"{path}:{node.lineno}", node.value


def test_the_library_says_no_word_about_the_command_line() -> None:
    """Neither an error nor a finding, nor any other text: the catalogue, and all sentences outside ``cli``."""
    said = [(name, str(kind.__doc__)) for name, kind in KINDS.items()]
    said += [(module, (ROOT / "cfs_tags" / module).read_text()) for module in ("errors.py", "catalogue.py", "messages.py")]
    for path in MODULES:
        if "cli" not in path.relative_to(ROOT).parts:
            said += [(where, text) for where, text in sentences(path) if " " in text.strip()]

    assert [(where, text) for where, text in said if TYPED.search(text)] == []


def test_advice_is_for_codes_that_there_are() -> None:
    assert hints.ADVICE.keys() <= CATALOGUE.keys()


def test_every_advice_that_becomes_commands_is_given_somewhere() -> None:
    given = {text for path in MODULES if "cli" not in path.relative_to(ROOT).parts for _, text in sentences(path)}

    for text in ADVICE_TEXTS:
        assert hints.advice(text) != text
        assert text in given, text


def test_an_error_about_bytes_names_what_they_are_of_once() -> None:
    with pytest.raises(FormatError) as caught, about("outer"), about("inner"):
        raise FormatError(structure="tar", offset=0, wanted="a", found="b")
    assert caught.value.path == "inner"
    with pytest.raises(errors.NotALink), about("outer"):
        raise errors.NotALink(path="x", found="a file")


def test_the_page_of_errors_is_made_from_the_catalogue() -> None:
    made = subprocess.run([sys.executable, "scripts/errors_page.py"], cwd=ROOT, capture_output=True, text=True, check=True)

    assert (ROOT / "docs/errors.md").read_text() == made.stdout
