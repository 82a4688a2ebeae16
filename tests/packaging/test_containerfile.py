"""The Containerfile of docs/howto/put-into-an-image.md is built as it stands, on a base image that is made of this machine."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tarfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from cfs_tags import __version__
from cfs_tags.cli.main import COMMANDS
from support.pages import Page
from support.peers import short_directory

ROOT = Path(__file__).parent.parent.parent
PAGE = Page(ROOT / "docs/howto/put-into-an-image.md")
BASE = "quay.io/fedora/fedora-bootc:43"
IMAGE = "localhost/my-os"
PYTHON = Path("/usr/bin/python3")
PROGRAMS = ("sh", "cat", "chmod", "cp", "dirname", "basename", "env", "install", "ln", "mkdir", "mktemp", "rm", "sed")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.peer,
    pytest.mark.skipif(os.geteuid() != 0 or not PYTHON.exists(), reason="needs root, and a Python of the system's"),
]


def run(*command: object, cwd: Path | None = None) -> str:
    done = subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


def libraries(file: Path) -> Iterator[Path]:
    """What the loader needs for a program or a library."""
    listed = subprocess.run(["ldd", file], capture_output=True, text=True, check=False).stdout
    yield from (Path(found) for found in re.findall(r"(/\S+) \(0x", listed))


def copy(file: Path, root: Path) -> None:
    target = root / file.resolve().relative_to("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        shutil.copy2(file, target)
    if file.resolve() != file:
        link = root / file.parent.resolve().relative_to("/") / file.name
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.exists():
            link.symlink_to(target.relative_to(root) if link.parent == root else f"/{target.relative_to(root)}")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root directory with this machine's shell, a few programs, Python, and the wheels that pip would fetch."""
    root = tmp_path_factory.mktemp("base")
    for name in ("bin", "lib", "lib64", "sbin"):
        (root / "usr" / name).mkdir(parents=True, exist_ok=True)
        (root / name).symlink_to(f"usr/{name}")
    for name in ("tmp", "proc", "sys", "dev", "var/tmp", "root", "etc", "run"):
        (root / name).mkdir(parents=True)
    version, standard = run(PYTHON, "-c", "import os, sys; print('%d.%d' % sys.version_info[:2]); print(os.__file__)").split()
    library = Path(standard).parent
    ignored = shutil.ignore_patterns(
        "__pycache__", "test", "tests", "idlelib", "turtledemo", "config-*", "site-packages", "dist-packages"
    )
    shutil.copytree(library, root / library.relative_to("/"), symlinks=True, ignore=ignored)
    bundled = Path("/usr/share/python-wheels")  # where Debian keeps the pip of new environments
    if bundled.exists():
        shutil.copytree(bundled, root / bundled.relative_to("/"))
    binaries = [*(Path(shutil.which(name) or name) for name in PROGRAMS), PYTHON, *library.glob("lib-dynload/*.so")]
    for file in binaries:
        for one in (*libraries(file), *([] if file.suffix == ".so" else [file])):
            copy(one, root)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = [*project["build-system"]["requires"], *project["project"]["dependencies"]]
    extras = re.search(r"\[([a-z,]+)\]\"$", (ROOT / "packaging/stage").read_text(), re.MULTILINE)
    assert extras is not None
    wanted += [one for name in extras[1].split(",") for one in project["project"]["optional-dependencies"][name]]
    pip = [shutil.which("python3"), "-m", "pip", "--quiet", "download", "--only-binary=:all:", "--python-version", version]
    run(*pip, "--dest", root / "wheels", *wanted)
    (root / "etc/pip.conf").write_text("[global]\nno-index = true\nfind-links = /wheels\n")
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    return root


@pytest.fixture(scope="module")
def built(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The root directory of the image that the Containerfile makes."""
    if shutil.which("podman") is None:
        if os.environ.get("CFS_TAGS_REQUIRE_PEERS") == "1":
            pytest.fail("missing peer: podman")
        pytest.skip("missing peer: podman")
    place = tmp_path_factory.mktemp("build")
    text = next("\n".join(block.lines) for block in PAGE.blocks if block.language == "dockerfile")
    (place / "Containerfile").write_text(text + "\n")
    checkout = place / "cfs-tag"
    for name in ("cfs_tags", "packaging", "scripts", "examples/systemd"):
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, checkout / name)

    run_root = short_directory()
    podman = ("podman", "--root", place / "storage", "--runroot", run_root.name)
    try:
        with tarfile.open(place / "base.tar", "w") as file:
            file.add(base, ".")
        run(*podman, "import", place / "base.tar", BASE)
        run(*podman, "build", "--isolation", "chroot", "--pull-never", "-t", IMAGE, ".", cwd=place)
        yield Path(run(*podman, "image", "mount", IMAGE).strip())
    finally:
        subprocess.run([*podman, "image", "umount", "--all"], capture_output=True, check=False)
        subprocess.run([*podman, "rmi", "--all", "--force"], capture_output=True, check=False)
        run_root.cleanup()


def test_the_image_has_a_program_that_works(built: Path, tmp_path: Path) -> None:
    with tarfile.open(ROOT / "examples/host.tar.gz") as file:
        file.extractall(tmp_path / "root", filter="fully_trusted")
    root = tmp_path / "root"
    shutil.copytree(built, root, symlinks=True, dirs_exist_ok=True)

    assert run("chroot", root, "cfs-tag", "--version") == f"cfs-tag {__version__}\n"
    assert "quay.io/apps/web:1" in run("chroot", root, "cfs-tag", "--sysroot", "/", "list")


def test_everything_is_below_usr_and_nothing_of_the_build_is_left(built: Path, base: Path) -> None:
    def files(root: Path) -> set[str]:
        return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_symlink() or path.is_file()}

    new = files(built) - files(base)
    assert {name for name in new if not name.startswith("usr/")} <= {
        "etc/hostname",
        "etc/hosts",
        "etc/resolv.conf",
        "run/.containerenv",
    }
    assert not [name for name in new if name.startswith("usr/local/")]
    assert {f"usr/share/man/man1/cfs-tag-{name}.1" for name in COMMANDS} <= new
    assert {"usr/bin/cfs-tag", "usr/lib/systemd/system/cfs-tag-maintain.timer"} <= new
    timer = built / "usr/lib/systemd/system/timers.target.wants/cfs-tag-maintain.timer"
    assert timer.read_text() == (ROOT / "examples/systemd/cfs-tag-maintain.timer").read_text()
    assert list((built / "usr/lib/cfs-tag/cfs_tags/__pycache__").glob("*.pyc")), "bytecode cannot be written later"
