"""Hosts that the real bootc made: what is lost of a deployment comes back from a host of the same kind, and it stays itself."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from cfs_tags import Repository
from cfs_tags.fsck.check import fsck
from mend.conftest import Repair
from support.mending import everything
from support.peers import Cfsctl
from support.serving import serving
from support.trees import copy_tree, unpack

SEED = int(os.environ.get("CFS_TAGS_SEED", "0"))
HOSTS = Path(__file__).parent.parent / "data/hosts"


def failing(repo: Path) -> list[tuple[str, str]]:
    with Repository.open(repo) as opened:
        return [(one.code, one.path) for one in fsck(opened, content=True, jobs=1).findings if one.fails]


@pytest.mark.parametrize("lost", ["some", "everything of the deployments but their refs"])
@pytest.mark.parametrize("name", ["a", "e", "life-staged", "w"])
def test_deployments_come_back_with_the_same_ids(name: str, lost: str, tmp_path: Path, repair: Repair, cfsctl: Cfsctl) -> None:
    unpack(HOSTS / f"{name}.tar.gz", tmp_path / "mine")
    (repo,) = [path.parent for path in (tmp_path / "mine").rglob("objects") if (path.parent / "streams").is_dir()]
    with Repository.open(repo, write=True) as opened:
        opened.deployments.adopt()
    before = failing(repo)
    other = copy_tree(repo, tmp_path / "other")
    images = sorted(path.name for path in (repo / "images/refs/cfs-tags/deployments").iterdir())
    assert images
    candidates = everything(repo)
    for path in random.Random(SEED).sample(candidates, 5) if lost == "some" else candidates:
        path.unlink()

    with serving(other, ["*"]) as served:
        done = repair(repo, "--from", f"http://{served.address}", status=6 if before else 0)

    assert done["mended"]["left"] == []
    assert set(failing(repo)) <= set(before)
    for image in images:
        assert (repo / "images" / image).resolve().is_file()
    if not before:
        cfsctl.assert_healthy(repo)
