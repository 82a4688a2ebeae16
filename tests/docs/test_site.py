"""The documentation is a site: every page is in its table of contents, and every link and anchor leads somewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from cfs_tags.catalogue import CATALOGUE
from cfs_tags.fsck.findings import CODES

ROOT = Path(__file__).parent.parent.parent
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")


def build(source: Path, target: Path) -> subprocess.CompletedProcess[str]:
    """Build a site; a warning is a failure."""
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-n", "-q", "-E", "-b", "html", str(source), str(target)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_the_site_is_built_without_a_warning_and_fetches_nothing(tmp_path: Path) -> None:
    done = build(ROOT / "docs", tmp_path)

    assert done.returncode == 0, done.stdout + done.stderr
    home = (tmp_path / "index.html").read_text()
    for page in ("tutorials/first-steps", "howto/move-a-host", "cli", "decisions/index"):
        assert f'href="{page}.html"' in home, page
    for page in tmp_path.rglob("*.html"):
        fetched = re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(https?:[^"]+)"', page.read_text())
        assert fetched == [], page


def test_broken_links_fail_the_build(tmp_path: Path) -> None:
    source = tmp_path / "docs"
    source.mkdir()
    (source / "conf.py").write_text(
        (ROOT / "docs/conf.py").read_text().replace("furo", "basic").replace("html_theme_options", "_")
    )
    broken = ["absent.md", "index.md#absent", "../absent.py", "#nothing"]
    (source / "index.md").write_text("# A page\n\n" + "\n\n".join(f"[x]({target})" for target in broken) + "\n")

    done = build(source, tmp_path / "site")

    assert done.returncode != 0
    assert [line for line in range(3, 10, 2) if f"index.md:{line}: WARNING" not in done.stderr] == []


@pytest.mark.parametrize("path", ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "examples/README.md"])
def test_links_of_pages_outside_the_site_lead_somewhere(path: str) -> None:
    page = ROOT / path

    for target in LINK.findall(page.read_text()):
        if not target.startswith(("https:", "#")):
            file = (page.parent / target.partition("#")[0]).resolve()
            assert file.exists(), target


def test_every_finding_and_every_error_has_its_steps() -> None:
    page = (ROOT / "docs/howto/when-something-is-broken.md").read_text()
    tables = page.partition("## Which steps for which code?")[2]
    findings, _, errors = tables.partition("### Errors")

    rows = [row for row in findings.splitlines() if row.startswith("| `")]
    assert sorted(code for row in rows for code in re.findall(r"`([a-z-]+)`", row.split("|")[1])) == sorted(CODES)
    rows = [row for row in errors.splitlines() if row.startswith("| `")]
    assert sorted(code for row in rows for code in re.findall(r"`([a-z-]+)`", row.split("|")[1])) == sorted(CATALOGUE)
