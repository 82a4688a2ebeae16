"""The updater of ``docs/python.md`` on a host that has the app not yet."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from cfs_tags import Repository
from cli.conftest import Run, call, facts, repo, run, sysroot, web  # noqa: F401

ROOT = Path(__file__).parents[2]


def test_the_first_installation_works_and_the_example_is_typed(run: Run, repo: Path, tmp_path: Path) -> None:  # noqa: F811
    text = (ROOT / "docs/python.md").read_text().partition("## An updater")[2].partition("```python\n")[2].partition("```")[0]
    archive = tmp_path / "app.tar"
    run("export", "quay.io/apps/web:1", f"oci-archive:{archive}", ok=True)
    program = tmp_path / "updater.py"
    changed = text.replace("/sysroot/composefs", str(repo)).replace("/srv/app.tar", str(archive))
    # it stands in no sysroot that can be collected: refs alone are what this is about
    program.write_text(changed.replace('collect(reason="update")', 'collect(reason="update", no_sysroot=True)'))
    words = [sys.executable, "-m", "mypy", "--strict", "--config-file=", program]
    typed = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert typed.returncode == 0, typed.stdout

    for _ in range(2):
        done = subprocess.run([sys.executable, program], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    with Repository.open(repo) as opened:
        assert opened.tags.get("quay.io/org/app:live") is not None
        assert opened.tags.get("quay.io/org/app:before") is None
