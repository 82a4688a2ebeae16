"""Over many hosts: after migrating, a collection by the real cfsctl takes nothing from any deployment that was migrated.

The property of the whole project, on sysroots made at random from real pulled images: deployments that are half there,
origins of every age, tags present and absent; with the tags of bootc's and without them.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cfs_tags import Repository
from cfs_tags.host.sysroot import SysrootView
from cfs_tags.migrate import migrate, plan
from deployments.conftest import sysroot_of
from support.peers import Cfsctl
from support.sysroots import BOOTC, Host, Pool, new_host
from support.trees import copy_tree

IMAGES = ("same", "old", "new")


class Shape(NamedTuple):
    """How one deployment looks."""

    state: bool = True
    origin: str = "digest"
    imginfo: bool = False
    entry: str = "active"
    uki: bool = False
    bootc_tag: bool = True
    other_tag: bool = False
    damage: str = "none"


SHAPES = st.builds(
    Shape,
    state=st.booleans(),
    origin=st.sampled_from(["digest", "no digest", "missing", "unreadable", "gone"]),
    imginfo=st.booleans(),
    entry=st.sampled_from(["active", "staged", "none"]),
    uki=st.booleans(),
    bootc_tag=st.booleans(),
    other_tag=st.booleans(),
    damage=st.sampled_from(["none", "none", "none", "manifest", "config", "layer", "image", "manifest object"]),
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    where = "/dev/shm" if os.access("/dev/shm", os.W_OK) else tmp_path_factory.mktemp("property")
    with tempfile.TemporaryDirectory(dir=where) as name:
        yield Path(name)


NUMBERS = count()


def build(home: Path, pool: Pool, shapes: dict[str, Shape], booted: str | None, staged: str | None) -> Host:
    host = new_host(home / str(next(NUMBERS)), pool, copy_tree)
    for name, shape in shapes.items():
        deployed = pool.images[name]
        if shape.state:
            host.deploy(name, digest=shape.origin != "no digest", imginfo=shape.imginfo)
            if shape.origin == "missing":
                host.origin(name).unlink()
            elif shape.origin == "unreadable":
                host.origin(name).write_bytes(b"\xff")
            elif shape.origin == "gone":
                host.origin(name).write_text(f"[image]\nmanifest_digest=sha256:{'0' * 64}\n")
        if shape.uki:
            host.ukis(name)
        if not shape.bootc_tag:
            host.untag(BOOTC + deployed.manifest)
        if shape.other_tag:
            host.tag(deployed.reference, deployed.manifest)
        damage(host, name, shape.damage)
    host.boot_entries(*(name for name, shape in shapes.items() if shape.entry == "active"))
    host.boot_entries(*(name for name, shape in shapes.items() if shape.entry == "staged"), staged=True)
    if booted is not None:
        host.boot(booted)
    if staged is not None:
        host.stage(staged)
    return host


def damage(host: Host, name: str, what: str) -> None:
    deployed = host.pool.images[name]
    manifest, config, *layers = (host.repo / "streams" / stream for stream in deployed.streams)
    if what in ("manifest", "manifest object"):
        (manifest if what == "manifest" else manifest.resolve()).unlink()
        for tag in (BOOTC + deployed.manifest, deployed.reference):
            # a dangling tag stops every collector: that is another matter
            (host.repo / "streams/refs/oci" / tag.replace("/", "%2F")).unlink(missing_ok=True)
    elif what == "config":
        config.unlink()
    elif what == "layer":
        layers[-1].unlink()
    elif what == "image":
        (host.repo / "images" / deployed.id).unlink()


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(
    shapes=st.fixed_dictionaries(dict.fromkeys(IMAGES, SHAPES)),
    booted=st.sampled_from([*IMAGES, None]),
    staged=st.sampled_from([*IMAGES, None]),
    bootc_tags=st.booleans(),
)
@example(dict.fromkeys(IMAGES, Shape()), "same", "new", False)
@example(dict.fromkeys(IMAGES, Shape(origin="no digest", bootc_tag=False)), "same", None, False)
@example(dict.fromkeys(IMAGES, Shape(origin="missing", state=False)), None, None, True)
def test_nothing_of_a_migrated_deployment_is_collected(
    cfsctl: Cfsctl,
    pools: Callable[[str], Pool],
    home: Path,
    shapes: dict[str, Shape],
    booted: str | None,
    staged: str | None,
    bootc_tags: bool,
) -> None:
    pool = pools("sha512")
    host = build(home, pool, shapes, booted, staged)
    lacking = {name: set(host.missing(name)) for name in IMAGES}

    with Repository.open(host.repo, write=True) as repo:
        view = SysrootView.read(sysroot_of(host), repo.algorithm)
        made = migrate(repo, view, timeout=5)
        again = plan(repo, view)
    rows = {row.id: row for row in made.rows}

    # the proof says that nothing is lost, and the second time there is nothing to do
    assert all(row.proof.lost == 0 for row in rows.values())
    assert set(rows) == set(view.seen)
    assert again.changes == ()

    if not bootc_tags:
        host.untag_bootc()
    cfsctl(host.repo, "gc")

    # and the real collector agrees
    for name in IMAGES:
        row = rows.get(pool.images[name].id)
        if row is None:
            continue
        if row.done in ("migrate", "complete"):
            assert row.manifest == pool.images[name].manifest
            assert set(host.missing(name)) <= lacking[name]
            assert "the config" not in host.missing(name)
        elif row.done == "image-only":
            assert host.missing(name, image_only=True) == []
            assert row.reason
        else:
            assert row.reason
    for tag in pool.apps:
        assert host.missing_of_app(tag) == []
    shutil.rmtree(host.root)
