"""Packages are built, have everything at its place, and what they install runs."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from cfs_tags import __version__
from cfs_tags.cli.main import COMMANDS

ROOT = Path(__file__).parent.parent.parent
EVERY = os.environ.get("CFS_TAGS_PROOF") == "long"
"""All kinds take a minute and a half of a processor; some are built in the long form alone."""
TOOLS = {"rpm": "rpmbuild", **({"deb": "dpkg-deb"} if EVERY else {})}
VERSION = "{}.{}".format(*sys.version_info)
KINDS = ("sdist", "wheel", "rpm", *(("pyz", "deb") if EVERY else ()))


def needs(program: str) -> None:
    if shutil.which(program) is None:
        if os.environ.get("CFS_TAGS_REQUIRE_PEERS") == "1":
            pytest.fail(f"missing peer: {program}")
        pytest.skip(f"missing peer: {program}")


def run(*command: object, **environment: str) -> str:
    env = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "HOME": os.environ.get("HOME", "/"), **environment}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300, check=False, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory with the packages."""
    for program in TOOLS.values():
        needs(program)
    target = tmp_path_factory.mktemp("packages")
    pip = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    run("sh", ROOT / "packaging/make", target, *KINDS, PYTHON=sys.executable, **pip)
    return target


def one(folder: Path, pattern: str) -> Path:
    (found,) = folder.glob(pattern)
    return found


def test_a_wheel_has_the_package_and_a_source_distribution_what_builds_the_others(made: Path) -> None:
    names = zipfile.ZipFile(one(made, "*.whl")).namelist()
    assert {"cfs_tags/py.typed", "cfs_tags/cli/main.py"} <= set(names)
    assert not any(name.startswith(("tests/", "docs/", "packaging/")) for name in names)

    top = f"cfs_tags-{__version__}"
    with tarfile.open(one(made, "*.tar.gz")) as file:
        found = set(file.getnames())
    wanted = [
        "LICENSE",
        "packaging/stage",
        "packaging/cfs-tags.spec",
        "scripts/man_pages.py",
        "examples/systemd/cfs-tag-gc.timer",
    ]
    assert [name for name in wanted if f"{top}/{name}" not in found] == []


@pytest.mark.skipif(not EVERY, reason="CFS_TAGS_PROOF=long builds it")
def test_one_file_runs_by_itself(made: Path, tmp_path: Path) -> None:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"

    assert run(made / "cfs-tag.pyz", "--version", SHIV_ROOT=str(tmp_path), PATH=path) == f"cfs-tag {__version__}\n"


def test_an_rpm_requires_the_python_that_runs_it(made: Path) -> None:
    needed = run("rpm", "-qp", "--requires", one(made, "*.rpm")).split("\n")

    assert f"/usr/bin/python{VERSION}" in needed
    assert not [name for name in needed if name.startswith(os.path.dirname(sys.executable))]


@pytest.mark.parametrize("kind", TOOLS)
def test_a_package_names_what_few_commands_need(made: Path, kind: str) -> None:
    if kind == "deb":
        control = run("dpkg-deb", "--field", one(made, "*.deb")).split("\n")
        assert {"Recommends: skopeo", "Suggests: python3-zeroconf"} <= set(control)
    else:
        assert run("rpm", "-qp", "--recommends", one(made, "*.rpm")).split() == ["skopeo"]
        assert run("rpm", "-qp", "--suggests", one(made, "*.rpm")).split() == ["python3-zeroconf"]


@pytest.mark.parametrize("kind", TOOLS)
def test_a_package_puts_everything_at_its_place_and_runs(made: Path, tmp_path: Path, kind: str, example_repo: Path) -> None:
    if kind == "deb":
        run("dpkg-deb", "-x", one(made, "*.deb"), tmp_path)
    else:
        run("rpm", "--root", tmp_path, "--dbpath", "/var/lib/rpm", "-i", "--nodeps", one(made, "*.rpm"))
    usr = tmp_path / "usr"

    first = (usr / "bin/cfs-tag").read_text().splitlines()[0]
    assert first == f"#!/usr/bin/python{VERSION} -sP", "the system's Python, of the version that the libraries are for"
    # a machine whose own Python is of another version has the one that built it
    program = (
        [usr / "bin/cfs-tag"] if Path(f"/usr/bin/python{VERSION}").exists() else [sys.executable, "-sP", usr / "bin/cfs-tag"]
    )
    assert run(*program, "--version") == f"cfs-tag {__version__}\n"
    assert "quay.io/apps/web:1" in run(*program, "--repo", example_repo, "list", "--format", "crane")
    pages = {path.name.removesuffix(".gz") for path in (usr / "share/man/man1").iterdir()}
    assert pages == {"cfs-tag.1", *(f"cfs-tag-{name}.1" for name in COMMANDS)}
    for place in (
        "share/bash-completion/completions/cfs-tag",
        "share/zsh/site-functions/_cfs-tag",
        "share/fish/vendor_completions.d/cfs-tag.fish",
    ):
        assert "_CFS_TAG_COMPLETE" in (usr / place).read_text()
    assert (usr / "share/zsh/site-functions/_cfs-tag").read_text().startswith("#compdef cfs-tag\n")
    for unit in ("cfs-tag-gc.service", "cfs-tag-serve.service", "cfs-tag-maintain.service", "cfs-tag-adopt.service"):
        text = (usr / "lib/systemd/system" / unit).read_text()
        assert " /usr/bin/cfs-tag " in text.replace("ExecStart=", " ")
        assert "/usr/local" not in text
    places = {os.fsencode(sys.prefix), os.fsencode(sys.base_prefix), os.fsencode(made)} - {b"/usr"}
    found = {place for path in tmp_path.rglob("*") if path.is_file() for place in places if place in path.read_bytes()}
    assert found == set(), "what built it is not in it"
    loose = [path for path in tmp_path.rglob("*") if not path.is_symlink() and path.stat().st_mode & stat.S_IWOTH]
    assert loose == []


@pytest.fixture
def example_repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("host")
    with tarfile.open(ROOT / "examples/host.tar.gz") as file:
        file.extractall(target, filter="fully_trusted")
    return target / "composefs"
