"""The page of ``report``: what it shows is the repository, and a real browser draws it without a network."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cfs_tags import Repository
from cfs_tags.cli.main import main
from cfs_tags.df import measure, shares
from cfs_tags.errors import printable
from cfs_tags.report.facts import read
from cli.conftest import Run, call  # noqa: F401  (call is a fixture here too)
from support.trees import copy_tree, tree

WEB, DB = "quay.io/apps/web:1", "quay.io/apps/db:2"
HOSTILE = "evil</script><img src=x onerror=alert(1)>\x1b[31m&amp;%{label}"
PLACES = ("--esp", "none", "--run", "none", "--booted", "none")


class Shown(NamedTuple):
    """What a browser made of a page: its elements after the script ran, what the console said, what was asked for."""

    elements: tuple[tuple[str, dict[str, str]], ...]
    text: str
    console: tuple[str, ...]
    asked_for: frozenset[str]

    def drawn(self, name: str, kind: str) -> int:
        """Elements of a kind whose class has that word."""
        return sum(tag == kind and name in attributes.get("class", "").split() for tag, attributes in self.elements)


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text: list[str] = []
        self._in_script = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attrs}))
        self._in_script = tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self._in_script = False

    def handle_data(self, data: str) -> None:
        if not self._in_script:
            self.text.append(data)


def browse(chromium: Path, page: Path, work: Path) -> Shown:
    log = work / "network.json"
    command = [
        *(
            chromium,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-background-networking",
            "--window-size=1200,1800",
        ),
        *(f"--user-data-dir={work / 'profile'}", f"--log-net-log={log}", "--enable-logging=stderr", "--v=0"),
        *("--virtual-time-budget=20000", "--dump-dom", page.as_uri()),
    ]
    done = subprocess.run(command, capture_output=True, timeout=180, check=True)
    reader = _Reader()
    reader.feed(done.stdout.decode())
    console = re.findall(r"CONSOLE.*", done.stderr.decode("utf-8", "replace"))
    events = json.loads(log.read_text())
    urls = {event["params"]["url"] for event in events["events"] if "url" in event.get("params", {})}
    asked = frozenset(url for url in urls if not url.startswith(("file:", "data:", "blob:", "chrome")))
    return Shown(tuple(reader.elements), "".join(reader.text), tuple(console), asked)


@pytest.fixture(scope="module")
def host(_example: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated host with a name that is an attack, and a deployment whose ref was taken away and made again."""
    path = copy_tree(_example, tmp_path_factory.mktemp("report") / "host")
    with Repository.open(path / "composefs", write=True, esp="none", run="none", booted="none") as repo:
        repo.deployments.migrate()
        repo.deployments.undo_migration()
        repo.deployments.migrate()
        repo.tags.create(HOSTILE.replace("\x1b", ""), WEB)
        (path / f"composefs/streams/refs/oci/{HOSTILE.replace('/', '%2F')}").symlink_to(
            os.readlink(path / f"composefs/streams/refs/oci/{DB.replace('/', '%2F')}")
        )
        repo.tags.create("app:stable", WEB)
    return path


@pytest.fixture
def repo(host: Path) -> Iterator[Repository]:
    with Repository.open(host / "composefs", esp="none", run="none", booted="none") as opened, opened.locked():
        yield opened


@pytest.fixture
def run(call: Run, host: Path) -> Run:  # noqa: F811
    def on_host(*words: str | Path, input: bytes = b"", ok: bool = False) -> Any:
        return call("--sysroot", host, *words, input=input, ok=ok)

    return on_host


@pytest.fixture(scope="module")
def shown(chromium: Path, host: Path, tmp_path_factory: pytest.TempPathFactory) -> Shown:
    """The page in a browser, once for all tests: that takes seconds."""
    place = tmp_path_factory.mktemp("browser")
    page = place / "report.html"
    assert main(["--sysroot", str(host), "report", str(page), *PLACES]) == 0
    assert b"\x1b" not in page.read_bytes()
    return browse(chromium, page, place)


def test_a_browser_draws_the_charts_without_a_network(shown: Shown, repo: Repository) -> None:
    facts = read(repo, repo.deployments.view())
    changes, _ = repo.deployments.planned_changes()
    parts = shares(repo, changes)

    assert shown.console == ()
    assert shown.asked_for == frozenset()
    owners = {"deployment" if set(part.owners) == {"bootc", "deployment"} else part.owners for part in parts.parts}
    slices = len(parts.parts) + len(owners) + (parts.dead.allocated > 0) + 1
    assert shown.drawn("slice", "g") == slices
    assert shown.drawn("hm", "g") == 1
    assert any(
        tag == "image" and (attributes.get("href") or attributes.get("xlink:href", "")).startswith("data:image/png")
        for tag, attributes in shown.elements
    )
    # a line each time that one had its ref, and one for each state in the legend; a mark for each line and each image
    kept = sum(len(span.kept) for span in facts.deployments)
    assert kept == 6
    assert shown.drawn("js-line", "path") == kept + len({span.state for span in facts.deployments})
    assert shown.drawn("point", "path") == kept + len(facts.deployments)
    for span in facts.deployments:
        assert span.id[:12] in shown.text


def test_names_are_text_whatever_is_in_them(shown: Shown) -> None:
    assert not [attributes for tag, attributes in shown.elements if tag == "img" or "onerror" in attributes]
    assert printable(HOSTILE) in shown.text


def test_the_parts_are_all_that_is_live_and_the_matrix_is_symmetric(repo: Repository) -> None:
    usage = measure(repo)
    for most in (1, 3, 200):
        found = shares(repo, most=most)
        every = [part.used for part in (*found.parts, *found.rest)]
        assert sum(used.allocated for used in every) == usage.live.allocated
        assert sum(used.objects for used in every) == usage.live.objects
        assert len(found.parts) <= most
        assert found.dead == usage.dead
    totals = {row.name: row.total.allocated for row in usage.rows}
    assert [found.matrix[at][at] for at in range(len(found.names))] == [totals[name] for name in found.names]
    assert found.matrix == tuple(zip(*found.matrix, strict=True))
    assert all(one <= row[number] for number, row in enumerate(found.matrix) for one in row)


def test_deployments_are_shown_for_as_long_as_they_had_their_ref(repo: Repository) -> None:
    facts = read(repo, repo.deployments.view())

    assert len(facts.deployments) == 3
    for span in facts.deployments:
        (first, until), (second, now) = span.kept
        assert until is not None
        assert first <= until <= second
        assert now is None
        assert facts.made - first < timedelta(hours=1)
        assert span.state == "other"
        assert span.built is not None


def test_a_repository_of_no_host_has_a_page_too(call: Run, stocked: Path, tmp_path: Path) -> None:  # noqa: F811
    page = tmp_path / "report.html"

    said = call("--repo", stocked, "report", page, "--json", ok=True).json["result"]

    assert said == {"file": str(page), "bytes": page.stat().st_size}
    assert "Deployments over time" not in page.read_text()


def test_it_is_written_whole_or_not_at_all(run: Run, host: Path, tmp_path: Path) -> None:
    before = tree(host)
    (tmp_path / "full.html").write_text("what was there")
    run("report", tmp_path / "full.html", *PLACES, ok=True)
    assert (tmp_path / "full.html").read_text().endswith("</html>\n")
    (tmp_path / "directory").mkdir()
    for place, status in (("directory", 1), ("nowhere/report.html", 1), ("directory/", 2), ("full.html/x", 1)):
        assert run("report", f"{tmp_path}/{place}", *PLACES).status == status
    assert {path.name for path in tmp_path.iterdir()} == {"full.html", "directory"}
    assert tree(host) == before


def test_standard_output_gets_the_same_page(run: Run, tmp_path: Path) -> None:
    run("report", tmp_path / "report.html", *PLACES, ok=True)

    def without_times(data: bytes) -> bytes:
        return re.sub(rb"\d{4}-\d\d-\d\d[T ]\d\d:\d\d[\d:.+]*", b"TIME", data)

    assert without_times(run("report", "-", *PLACES, ok=True).raw) == without_times((tmp_path / "report.html").read_bytes())
    assert run("report", "-", "--json", *PLACES).status == 2


def test_without_the_package_it_says_what_to_install(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "plotly" or name == "cfs_tags.report.page"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "plotly", None)

    said = run("report", tmp_path / "report.html", "--json", *PLACES)

    assert (said.status, said.json["error"]["code"]) == (1, "missing-extra")
    assert said.json["error"]["hint"].startswith("pip install plotly; ")
