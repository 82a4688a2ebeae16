"""Every way to install it that docs/howto/install.md names, with its own lines, from a copy of the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from cfs_tags import __version__
from support.pages import Page

ROOT = Path(__file__).parent.parent.parent
PAGE = Page(ROOT / "docs/howto/install.md")
WAYS = {
    block.commands[0][0].split()[0]: [line for line, _ in block.commands]
    for block in PAGE.blocks
    if block.language == "console"
}
UNSET = ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "VIRTUAL_ENV", "CFS_TAG_REPO", "CFS_TAG_SYSROOT")


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory with pipx and uv."""
    place = tmp_path_factory.mktemp("tools")
    subprocess.run([sys.executable, "-m", "venv", place], check=True)
    subprocess.run([place / "bin/pip", "install", "--quiet", "pipx", "uv"], check=True)
    return place / "bin"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What git has of this checkout, without what was built in it."""
    place = tmp_path_factory.mktemp("checkout")
    for name in ("pyproject.toml", "MANIFEST.in", "LICENSE", "README.md", "cfs_tags"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, place / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, place / name)
    return place


@pytest.fixture
def host(tmp_path: Path) -> Path:
    with tarfile.open(ROOT / "examples/host.tar.gz") as file:
        file.extractall(tmp_path / "host", filter="fully_trusted")
    return tmp_path / "host"


def test_the_page_has_the_ways_that_are_tried() -> None:
    assert list(WAYS) == ["python3", "pipx", "uv"]


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_the_lines_of_the_page_install_a_program_that_works(
    way: str, tools: Path, checkout: Path, host: Path, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    shared = tmp_path / "usr-local-bin"
    home.mkdir()
    shared.mkdir()
    environment = {name: value for name, value in os.environ.items() if name not in UNSET}
    path = f"{tools}:{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"
    # uv has a list of its own of whom to trust; a machine whose registry is signed by somebody else says so to the system
    environment |= {"HOME": str(home), "PATH": path, "UV_PYTHON": sys.executable, "UV_SYSTEM_CERTS": "1"}

    for line in WAYS[way]:
        here = line.replace("/opt/", f"{tmp_path}/").replace("/usr/local/bin/", f"{shared}/")
        done = subprocess.run(here, shell=True, cwd=checkout, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    program = (shared if way == "python3" else home / ".local/bin") / "cfs-tag"

    def said(*words: str | Path) -> str:
        return subprocess.run(
            [program, *words], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        ).stdout

    assert said("--version") == f"cfs-tag {__version__}\n"
    assert "quay.io/apps/web:1" in said("--sysroot", host, "list", "--format", "{name}")
    interpreter = program.read_text().splitlines()[0].removeprefix("#!").split()[0]
    assert subprocess.run([interpreter, "-c", "import uvicorn"], cwd=tmp_path, env=environment, check=False).returncode == 0
