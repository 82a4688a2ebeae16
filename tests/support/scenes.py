"""A scene for every command that changes something: what the proofs of interruption and of power cuts run.

All start from a copy of a recorded host, changed by ``cfs-tag`` itself, by a real updater's means, or by hand.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from support.everywhere import REPO, Scene, run_words
from support.images import (
    Layer,
    app_image,
    build_image,
    build_index,
    directory,
    file,
    host_layer,
    pull_image,
    random_bytes,
    symlink,
)
from support.peers import Cfsctl
from support.trees import copy_tree, unpack

__all__ = ["build_scenes"]

WEB, DB = "quay.io/apps/web:1", "quay.io/apps/db:2"
BOUND = "usr/lib/bootc/bound-images.d"
UNITS = "usr/share/containers/systemd"
ROOT = Path(__file__).parent.parent.parent


Step = tuple[str, ...] | Callable[[Path], object]
"""A command, or another change of a directory."""


class Made(NamedTuple):
    """How a scene is made: the command, and what is done ``first``."""

    words: tuple[str, ...]
    first: tuple[Step, ...] = ()
    input: str = ""
    collects: bool = False


def _on_tags() -> Iterator[tuple[str, Made]]:
    one = (("create", "t/one", WEB),)
    two = (*one, ("create", "t/two", DB))
    yield "create", Made(("create", "t/one", WEB))
    yield "create private", Made(("create", "t/one", WEB, "--private"))
    yield "create a lease", Made(("create", "t/one", WEB, "--expires", "7d"))
    yield "move", Made(("create", "t/one", DB, "--force"), one)
    yield "move to the other home", Made(("create", "t/one", DB, "--force", "--private"), one)
    yield "delete", Made(("delete", "t/one", "--missing-ok"), one)
    yield "delete two", Made(("delete", "t/one", "t/two", "--missing-ok"), two)
    yield "delete into the trash", Made(("delete", "t/one", "t/two", "--keep-for", "7d", "--missing-ok"), two)
    yield "rename", Made(("rename", "t/one", "t/new"), one)
    yield "rename over another", Made(("rename", "t/one", "t/two", "--force"), two)
    lines = f"create t/new {WEB}\nmove t/one {DB}\ndelete t/two\ncreate t/more {DB}\n"
    yield "update", Made(("update", "--stdin"), two, input=lines)
    yield "restore from the trash", Made(("restore", "t/one"), (*one, ("delete", "t/one", "--keep-for", "7d")))
    yield "empty the trash", Made(("trash", "empty", "--yes"), (*two, ("delete", "t/one", "t/two", "--keep-for", "7d")))
    yield "restore from the log", Made(("restore", "t/one"), (*one, ("delete", "t/one")))
    yield "restore an entry", Made(("restore", "t/one@{1}"), (*one, ("create", "t/one", DB, "--force")))
    moved = (*one, ("create", "t/one", DB, "--force"))
    yield "policy", Made(("policy", "apply", "--file", "policy.toml"), (*two, _policy))
    yield "restore the value before", Made(("restore", "t/one"), moved)


def _policy(home: Path) -> None:
    (home / "policy.toml").write_text('[[rule]]\ntags = ["t/*"]\ngroup-by = "rule"\nkeep-last = 1\n')


def _on_pins(booted: str, others: Sequence[str]) -> Iterator[tuple[str, Made]]:
    places = ("--run", "host/run", "--booted", booted, "--esp", "none")
    yield "pin a tag", Made(("pin", WEB))
    yield "pin a deployment", Made(("pin", others[0], *places, "--name", "mine", "--reason", "why not"))
    pinned = (("pin", others[0], *places, "--name", "mine"),)
    yield "pin with an end", Made(("pin", others[0], *places, "--name", "mine", "--until", "9d"), pinned)
    yield "unpin", Made(("unpin", "mine"), pinned)
    yield "unpin two", Made(("unpin", "mine", WEB), (*pinned, ("pin", WEB)))
    loses = (*pinned, lambda home: _loses_boot_objects(home / "host", others[0]))
    yield "revive", Made(("revive", "mine", *places, "--export-only", "--to", "out", "--force"), loses)
    ended = (("pin", WEB, "--until", "1s"), ("delete", WEB), lambda home: time.sleep(2.1))
    yield "collect a pin", Made(("gc", "--no-sysroot"), ended, collects=True)


def _on_deployments(booted: str, others: Sequence[str]) -> Iterator[tuple[str, Made]]:
    places = ("--run", "host/run", "--booted", booted, "--esp", "none")
    stopped = ("--run", "none", "--booted", "none", "--esp", "none")
    yield "create a deployment's ref", Made(("create", "--deployment", others[0]))
    yield "migrate", Made(("migrate", *places))
    yield "migrate with origins", Made(("migrate", *places, "--write-origin"))
    yield "undo a migration", Made(("migrate", *places, "--undo"), (("migrate", *places, "--write-origin"),))
    yield "retire adopts", Made(("retire", *places))
    gone = (("migrate", *places), lambda home: _remove(home / "host", others))
    retire = ("retire", *stopped, "--grace", "0")
    yield "retire", Made(retire, gone)
    yield "collect", Made(("gc", *places), collects=True)
    yield "maintain", Made(("maintain", *places, "--check-every", "1s"), collects=True)
    yield "collect what was retired", Made(("gc", *stopped), (*gone, retire), collects=True)
    littered = (
        ("create", "t/one", DB),
        ("create", "t/lent", WEB, "--expires", "1s"),
        ("delete", "t/one", "--keep-for", "1s"),
        ("delete", WEB, DB),
        lambda home: time.sleep(2.1),
    )
    yield "collect leases and trash", Made(("gc", "--no-sysroot"), littered, collects=True)
    yield "record a good boot", Made(("good-boot", *places), (("good-boot", others[0], *places),))
    unmarked = (lambda home: (home / REPO / "meta.json").unlink(),)
    yield "collect without meta.json", Made(("gc", *places), unmarked, collects=True)
    yield "repair", Made(("fsck", "--repair"), (("create", "t/one", WEB), _dangling))
    pinned = (("migrate", *places), ("pin", others[0], *places, "--name", "mine"))
    yield (
        "repair links, refs and what a pin keeps",
        Made(("fsck", "--repair"), (*pinned, lambda home: _loses_links(home, others[0]))),
    )


def _remove(host: Path, deployments: Sequence[str]) -> None:
    """As bootc removes deployments, its tags included."""
    for deployment in deployments:
        shutil.rmtree(host / "state/deploy" / deployment)
        shutil.rmtree(host / f"boot/bootc_composefs-{deployment}")
        for entry in (host / "boot/loader").glob("entries*/*.conf"):
            if deployment in entry.read_text():
                entry.unlink()
    (host / "run/composefs/staged-deployment").unlink(missing_ok=True)
    for tag in (host / "composefs/streams/refs/oci").glob("localhost*"):
        tag.unlink()


def _loses_boot_objects(host: Path, deployment: str) -> None:
    """As newer versions of bootc: objects of files in /boot go, whoever else has them."""
    for kept in (host / "composefs/cfs-tags/pins").glob("*/objects/*"):
        (host / "composefs/objects" / kept.name[:2] / kept.name[2:]).unlink()


def _loses_links(home: Path, deployment: str) -> None:
    """Links of a layer, an image and a manifest are gone or lead to nothing, objects of /boot are gone; a ref leads nowhere."""
    repo = home / REPO
    _loses_boot_objects(home / "host", deployment)
    (repo / "images" / deployment).unlink()
    layers = sorted((repo / "streams").glob("oci-layer-*"))
    layers[0].unlink()
    layers[1].unlink()
    layers[1].symlink_to("../objects/00/" + "0" * 126)
    (repo / "streams" / (repo / "streams/refs/oci" / WEB.replace("/", "%2F")).readlink().name).unlink()
    _dangling(home)


def _dangling(home: Path) -> None:
    """A ref that leads nowhere."""
    (home / REPO / "streams/refs/oci/dangling").symlink_to("../../oci-manifest-sha256:" + "0" * 64)


def _on_images(home: Path) -> Iterator[tuple[str, Made]]:
    layout = home / "layout"
    app = app_image(layout, "app")
    arm = app_image(layout, "arm", config={"architecture": "arm64"})
    app_image(layout, "other")
    build_index(layout, "both", {"amd64": app, "arm64": arm})

    def beside(place: Path) -> None:
        copy_tree(layout, place / "layout")

    imported = ("import", "oci:layout:app", "t/app")
    yield "import", Made(imported, (beside,))
    yield "import what is there", Made(imported, (beside, imported, ("delete", "t/app")))
    yield "import over a tag", Made(("import", "oci:layout:app", "t/one", "--force"), (beside, ("create", "t/one", WEB)))
    every = ("import", "oci:layout:both", "t/all", "--all-platforms", "--keep-index")
    yield "import an index", Made(every, (beside,))

    def loses_a_file(place: Path) -> None:
        (lost,) = (path for path in (place / REPO / "objects").glob("*/*") if path.read_bytes() == random_bytes("app", 3000))
        lost.unlink()

    def loses_its_manifest(place: Path) -> None:
        (tag,) = (place / REPO / "streams/refs/cfs-tags/tags").glob("t%2Fapp")
        (place / REPO / "streams" / tag.readlink().name).unlink()

    yield "import mends", Made(imported, (beside, imported, loses_a_file))
    mends = ("fsck", "--repair", "--from", "oci:layout")
    yield "repair from a source", Made(mends, (beside, imported, loses_a_file, loses_its_manifest))

    def has_wrong_bytes(place: Path) -> None:
        (wrong,) = (path for path in (place / REPO / "objects").glob("*/*") if path.read_bytes() == random_bytes("app", 3000))
        wrong.write_bytes(bytes(3000))

    reads = ("fsck", "--repair", "--content", "--from", "oci:layout")
    yield "repair what has wrong bytes from a source", Made(reads, (beside, imported, has_wrong_bytes))
    yield "export", Made(("export", WEB, "oci:out:web"))
    yield "export to an archive", Made(("export", WEB, "oci-archive:out.tar"))


def _bound_host(cfsctl: Cfsctl, home: Path) -> str:
    """A host whose deployment is bound to two app images; returns the deployment."""
    names = {"web": "quay.io/apps/web:1", "db": "quay.io/apps/db:latest"}
    units = [
        *(directory(name) for name in ("usr", "usr/lib", "usr/lib/bootc", BOUND, "usr/share", "usr/share/containers", UNITS)),
        *(file(f"{UNITS}/{unit}.image", f"[Image]\nImage={name}\n") for unit, name in names.items()),
        *(symlink(f"{BOUND}/{unit}.image", f"/{UNITS}/{unit}.image") for unit in names),
    ]
    repo = home / REPO
    repo.parent.mkdir(parents=True)
    cfsctl(None, "init", "--insecure", repo)
    layers = [host_layer("1", boot_content=True), Layer(units)]
    layout = home.parent / "bound-layout"
    host = build_image(layout, "host", layers, labels={"containers.bootc": "1"})
    pulled = pull_image(cfsctl, repo, host, "localhost/host", bootable=True)
    assert pulled
    for unit, name in names.items():
        pull_image(cfsctl, repo, app_image(layout, unit), name)
    _, boot = cfsctl.images_of(repo, "localhost/host")
    assert boot is not None
    (home / "host/state/deploy" / boot).mkdir(parents=True)
    return boot


def build_scenes(home: Path, cfsctl: Cfsctl, only: Collection[str] = ()) -> list[Scene]:
    """All scenes, or those of these names, rehearsed; ``home`` does not exist, and stays as long as they are used."""
    base = home / "base"
    (base / "host").mkdir(parents=True)
    unpack(ROOT / "examples/host.tar.gz", base / "host")
    facts = json.loads((ROOT / "examples/host.json").read_text())
    others = [one for one in facts["deployments"] if one != facts["booted"]]
    images = home / "images"
    images.mkdir()
    made = [*_on_tags(), *_on_deployments(facts["booted"], others), *_on_pins(facts["booted"], others), *_on_images(images)]
    scenes = [
        _scene(name, base, home / f"scene-{number}", each)
        for number, (name, each) in enumerate(made)
        if not only or name in only
    ]
    if not only:
        scenes += _bound_scenes(home, cfsctl)
    for scene in scenes:
        scene.rehearse(home / "rehearsal", cfsctl)
    return scenes


def _bound_scenes(home: Path, cfsctl: Cfsctl) -> Iterator[Scene]:
    bound = home / "bound"
    deployment = _bound_host(cfsctl, bound)
    places = ("--boot", "none", "--run", "none", "--booted", "none", "--esp", "none")
    alone = ("create", "--deployment", deployment)
    yield _scene("bind", bound, home / "scene-bind", Made(("bind", *places), (alone,)))
    yield _scene("create and bind", bound, home / "scene-create-bind", Made((*alone, "--bind")))


def _scene(name: str, base: Path, home: Path, made: Made) -> Scene:
    copy_tree(base, home)
    for step in made.first:
        if callable(step):
            step(home)
        else:
            said = run_words(home, _full(step))
            assert said.status == 0, (name, step, said)
    return Scene(name, home, _full(made.words), made.input, collects=made.collects)


def _full(words: Sequence[str]) -> tuple[str, ...]:
    """Commands that look at deployments are given the sysroot, others the repository."""
    looks = ("migrate", "retire", "bind", "good-boot")
    on_host = words[0] in looks or "--booted" in words or (words[0] == "gc" and "--no-sysroot" not in words)
    return ("--sysroot", "host", *words) if on_host or "--deployment" in words else ("--repo", REPO, *words)
