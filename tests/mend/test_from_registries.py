"""``fsck --repair --from docker://…``: skopeo fetches from the real registry, and of an image only what is missing."""

from __future__ import annotations

import json
import os
import random
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mend.conftest import Repair
from support.images import app_image, base_layer
from support.importing import import_image
from support.mending import Layers, assert_whole, everything, layers, objects
from support.peers import Cfsctl
from support.registries import Distribution, distribution

SEED = int(os.environ.get("CFS_TAGS_SEED", "0"))


@pytest.fixture
def upstream(
    registry: Path, skopeo: Path, layout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Distribution]:
    """It has everything, in one repository; skopeo takes it for one that needs no TLS."""
    with distribution(registry, tmp_path / "registry") as made:
        blobs = {f"sha256:{path.name}": path.read_bytes() for path in (layout / "blobs/sha256").iterdir()}
        manifests = [entry["digest"] for entry in json.loads((layout / "index.json").read_bytes())["manifests"]]
        for digest, data in blobs.items():
            if digest not in manifests:
                made.upload("org/all", data)
        for number, digest in enumerate(manifests):
            made.tag("org/all", f"tag{number}", blobs[digest])
        config = tmp_path / ".config/containers/registries.conf"
        config.parent.mkdir(parents=True)
        config.write_text(f'[[registry]]\nlocation = "{made.address}"\ninsecure = true\n')
        monkeypatch.setenv("HOME", str(tmp_path))
        yield made


@pytest.mark.parametrize("attempt", range(4))
def test_what_is_lost_at_random_comes_back_and_only_layers_that_lack_something_leave_the_registry(
    attempt: int, repo: Path, upstream: Distribution, repair: Repair, cfsctl: Cfsctl
) -> None:
    chance = random.Random(SEED + attempt)
    whole = Layers(repo)
    for path in chance.sample(everything(repo), 3 + attempt):
        path.unlink()
    lacking = whole.lacking(repo)
    with upstream.counted() as asked:
        done = repair(repo, "--from", f"docker://{upstream.address}/org/all")
    assert_whole(cfsctl, repo)
    assert done["mended"]["left"] == []
    blobs = sum(one.size for one in asked if "/blobs/" in one.path and one.method == "GET")
    print(f"attempt {attempt}: {blobs} bytes of blobs left the registry, layers that lacked something {sum(lacking.values())}")
    configs = 6000  # skopeo takes the config along
    assert blobs <= 1.2 * sum(lacking.values()) + configs


def test_the_same_over_plain_http(repo: Path, upstream: Distribution, repair: Repair, cfsctl: Cfsctl) -> None:
    for path in random.Random(SEED).sample(everything(repo), 9):
        path.unlink()
    done = repair(repo, "--from", f"http://{upstream.address}/org/all")
    assert done["mended"]["left"] == []
    assert_whole(cfsctl, repo)


def test_a_registry_that_is_down_is_said_and_nothing_is_taken_for_gone(
    repo: Path, upstream: Distribution, repair: Repair
) -> None:
    upstream.stop()
    victim = next(path for path in everything(repo) if path.is_file() and not path.is_symlink())
    victim.unlink()
    done = repair(repo, "--from", f"docker://{upstream.address}/org/all", status=6)
    assert done["mended"]["images"] == []


@pytest.mark.parametrize("part", ["layers", "everything"])
def test_an_image_that_came_with_a_manifest_of_dockers_comes_back_under_the_one_that_was_made_of_it(
    part: str, new_repo: Callable[..., Path], upstream: Distribution, skopeo: Path, layout: Path, repair: Repair, cfsctl: Cfsctl
) -> None:
    """The registry does not know the digest that it has here; the tag that is named leads to it."""
    place = f"docker://{upstream.address}/org/docker:1"
    image = app_image(layout, "docker", [base_layer(), *layers(1, "one"), *layers(1, "two")])  # Docker has no zstd
    subprocess.run([skopeo, "copy", "--quiet", "--format", "v2s2", image.source, place], check=True)
    mine = new_repo(layout.parent / "mine")
    done = import_image(mine, place, "web")
    assert done.plan.source_digest != done.plan.images[0].digest
    victims = everything(mine) if part == "everything" else objects(mine)[::3]
    for path in victims:
        path.unlink()
    assert repair(mine, "--from", place)["mended"]["left"] == []
    assert_whole(cfsctl, mine)
