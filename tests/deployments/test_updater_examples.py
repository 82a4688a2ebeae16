"""The scripts of ``examples/`` for an updater do on a host what they say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from support.peers import Cfsctl
from support.sysroots import BOOTC, Host

ROOT = Path(__file__).parent.parent.parent


def run(script: str, *args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", str(ROOT / "examples" / script), *map(str, args)]
    environment = {"PYTHONPATH": str(ROOT), "LC_ALL": "C.UTF-8"}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)


def ref(host: Host, name: str) -> list[str]:
    tops = ("streams/refs/cfs-tags/deployments", "streams/refs/cfs-tags/configs", "images/refs/cfs-tags/deployments")
    return [f"{top}/{host.id(name)}" for top in tops]


def test_an_update_from_staging_to_removal(host: Host, cfsctl: Cfsctl) -> None:
    """The ref is made before anything else of the deployment is there, and goes when all of it is gone."""
    new = host.pool.images["new"]
    host.deploy("same")
    host.boot_entries("same")

    made = run("updater_create.py", host.root, new.id, new.manifest)

    assert (made.returncode, made.stderr) == (0, "")
    assert sorted(line.partition(" -> ")[0] for line in made.stdout.splitlines()) == sorted(ref(host, "new"))
    assert run("updater_create.py", host.root, new.id, new.manifest).stdout == "it has its ref already\n"

    host.deploy("new", digest=False)
    host.boot_entries("new", "same")
    host.untag(BOOTC + new.manifest)
    cfsctl(host.repo, "gc")
    assert host.missing("new") == []
    found = run("updater_lookup.py", host.root, new.id[:12])
    assert found.stdout.splitlines() == [
        f"manifest {new.manifest} (by ref), {len(new.image.manifest_bytes)} bytes",
        f"config {new.image.config_digest}",
        *(f"layer {diff_id}" for diff_id in new.image.diff_ids),
    ]

    kept = run("updater_retire.py", host.root, new.id, "not-running")
    assert (kept.returncode, kept.stdout) == (1, f"{new.id}: kept: it is in boot-entry, state\n")
    host.undeploy("new")
    unsure = run("updater_retire.py", host.root, new.id)
    assert unsure.returncode == 1
    assert "no EFI system partition is mounted" in unsure.stdout
    gone = run("updater_retire.py", host.root, new.id, "not-running")
    assert (gone.returncode, gone.stdout) == (0, f"{new.id}: retired: no place has it\n")

    cfsctl(host.repo, "gc")
    assert len(host.missing("new")) > 5


def test_the_list_has_state_image_ref_and_health(three: Host) -> None:
    shown = run("updater_lookup.py", three.root)

    assert shown.returncode == 0
    assert sorted(shown.stdout.splitlines()) == sorted(
        [
            f"{three.id('same')}  other  {three.pool.images['same'].reference}  none  no-ref",
            f"{three.id('old')}  other  {three.pool.images['old'].reference}  none  origin-without-digest, no-ref",
            f"{three.id('new')}  other  {three.pool.images['new'].reference}  none  no-ref",
        ]
    )


def test_a_manifest_of_another_image_is_refused(three: Host) -> None:
    done = run("updater_create.py", three.root, three.id("new"), three.pool.images["old"].manifest)

    assert done.returncode == 4
    assert "was made into" in done.stderr
    assert run("updater_create.py", three.root, "xyz", three.pool.images["old"].manifest).returncode == 2
    assert run("updater_retire.py", three.root, three.id("new"), "not-running").returncode == 3
    assert run("updater_lookup.py", three.root, "booted").returncode == 3
