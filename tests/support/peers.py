"""Finding the real peers, and running cfsctl so that a failure shows everything.

A missing peer skips the tests that need it, by name; with ``CFS_TAGS_REQUIRE_PEERS=1`` it fails them, so that CI cannot
pass by having no peers.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NoReturn

import pytest

__all__ = ["CFSCTL_VERSION", "MISSING", "PEERS", "Cfsctl", "clean_environment", "find_peer", "no_peer", "peer_or_skip"]

PEERS = ("cfsctl", "skopeo", "umoci", "podman", "crane", "conformance", "registry", "chromium")
"""Names of fixtures and of programs."""

CFSCTL_VERSION = (0, 9, 4)
"""The oldest cfsctl whose behaviour the tests describe."""

MISSING = "missing peer"
"""How the reason of a skip starts when a peer is missing; its name follows."""


class Cfsctl:
    """The real cfsctl, called with a repository and its arguments.

    ``cfsctl(repo, "oci", "images")`` gives the finished process with its output as text and fails with all of that
    output when the exit status is not 0; ``check=False`` leaves the status to the caller.  ``repo`` is None where
    there is none.  The environment is nearly empty: nothing of the developer's configuration reaches it.
    """

    def __init__(self, program: Path, home: Path) -> None:
        self.program = program
        self.environment = clean_environment(home)

    def command(self, repo: Path | None, *args: str | Path) -> list[str]:
        """The command line, for tests that start the process themselves (pass ``env=cfsctl.environment``)."""
        where = [] if repo is None else ["--repo", str(repo)]
        return [str(self.program), *where, *map(str, args)]

    def __call__(
        self,
        repo: Path | None,
        *args: str | Path,
        check: bool = True,
        input: bytes | None = None,
        timeout: float = 60.0,
    ) -> subprocess.CompletedProcess[str]:
        """Run it; ``timeout`` in seconds."""
        command = self.command(repo, *args)
        try:
            raw = subprocess.run(
                command, input=input or b"", capture_output=True, env=self.environment, timeout=timeout, check=False
            )
        except subprocess.TimeoutExpired as late:
            pytest.fail(f"{shlex.join(command)}\nnot done after {timeout:g} s\n{late.stdout!r}\n{late.stderr!r}")
        done = subprocess.CompletedProcess(
            command, raw.returncode, os.fsdecode(raw.stdout), raw.stderr.decode("utf-8", "backslashreplace")
        )
        if check and done.returncode != 0:
            pytest.fail(
                f"{shlex.join(command)}\nexit status {done.returncode}\n"
                f"--- standard output\n{done.stdout}\n--- standard error\n{done.stderr}"
            )
        return done

    def json(self, repo: Path | None, *args: str | Path) -> Any:
        """Run it and parse its standard output."""
        return json.loads(self(repo, *args).stdout)

    def tags(self, repo: Path) -> dict[str, str]:
        """Tag name to manifest digest, as ``oci images`` lists them."""
        return {row["name"]: row["manifest_digest"] for row in self.json(repo, "oci", "images", "--json")["images"]}

    def images_of(self, repo: Path, tag: str) -> tuple[str | None, str | None]:
        """The plain and the boot EROFS image of a tag (or ``@sha256:…``), as ``oci inspect`` names them."""
        shown = self.json(repo, "oci", "inspect", tag)
        return shown.get("composefs_erofs"), shown.get("composefs_boot_erofs")

    def assert_healthy(self, repo: Path) -> None:
        """Fail unless the repository checks out, its tags list, and the collector's dry run goes through."""
        self(repo, "--no-upgrade", "fsck")
        self(repo, "--no-upgrade", "oci", "images")
        self(repo, "--no-upgrade", "gc", "--dry-run")


def clean_environment(home: Path) -> dict[str, str]:
    """A minimal environment for a peer: a path, an empty home, an English C locale that takes any text."""
    path = os.environ.get("PATH", "/usr/bin:/bin")
    return {"PATH": path, "HOME": str(home), "TMPDIR": str(home), "LC_ALL": "C.UTF-8", "RUST_BACKTRACE": "0"}


def find_peer(name: str) -> Path | None:
    """Where it is: named by ``CFS_TAGS_<NAME>``, built by ``.ci/run`` into its cache folder, or on the path."""
    if name == "chromium":  # the small one without a window, as Debian calls it
        found = shutil.which("chromium-headless-shell") or shutil.which(name)
        return Path(found) if found else None
    named = os.environ.get(f"CFS_TAGS_{name.upper()}")
    if named:
        return Path(named) if os.access(named, os.X_OK) else None
    home = Path(os.environ.get("HOME", "/nonexistent"))
    cache = os.environ.get("CFS_TAGS_CACHE") or f"{os.environ.get('XDG_CACHE_HOME') or home / '.cache'}/cfs-tag-ci"
    built = sorted(Path(cache).glob(f"{name}-*/bin/{name}"), key=lambda path: _version(path.parent.parent.name))
    if built and os.access(built[-1], os.X_OK):
        return built[-1]
    found = shutil.which(name)
    return Path(found) if found else None


def short_directory() -> tempfile.TemporaryDirectory[str]:
    """For the run root of podman, which takes 50 characters at most: more than pytest leaves of them in its 100th run."""
    return tempfile.TemporaryDirectory(prefix="pod", dir="/tmp", ignore_cleanup_errors=True)


def peer_or_skip(name: str) -> Path:
    """The program, or a skip (a failure where peers are required) that names it."""
    program = find_peer(name)
    if program is None:
        no_peer(name, "not found")
    if name == "cfsctl":
        said = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=60, check=False).stdout
        if _version(said) < CFSCTL_VERSION:
            wanted = ".".join(map(str, CFSCTL_VERSION))
            no_peer(name, f"{program} is {said.strip() or 'of no known version'}, {wanted} or newer is needed")
    return program


def no_peer(name: str, why: str) -> NoReturn:
    """Skip the test because the peer ``name`` is missing; fail it where peers are required."""
    message = f"{MISSING}: {name}: {why}"
    if os.environ.get("CFS_TAGS_REQUIRE_PEERS") == "1":
        pytest.fail(message, pytrace=False)
    pytest.skip(message)


def _version(text: str) -> tuple[int, ...]:
    numbers = re.search(r"\d+(?:\.\d+)+", text)
    return tuple(map(int, numbers[0].split("."))) if numbers else ()
