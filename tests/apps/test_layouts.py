"""Images as other tools leave them: buildx and containerd, podman's storage, ``docker save`` of several."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from cfs_tags import Repository
from cfs_tags.apps import platforms
from cfs_tags.apps.importing.choose import Options
from cfs_tags.tags import rows
from cfs_tags.values import Digest
from support.images import (
    INDEX_TYPE,
    MANIFEST_TYPE,
    Image,
    Layer,
    app_image,
    base_layer,
    build_image,
    file,
    skopeo_copy,
)
from support.importing import import_image
from support.peers import Cfsctl, clean_environment
from support.raising import raises
from support.serving import serving

NAME = "quay.io/apps/multi:1"
IN_TOTO = "application/vnd.in-toto+json"


def put(layout: Path, document: object) -> dict[str, Any]:
    """Digest and size of a new blob."""
    data = document if isinstance(document, bytes) else json.dumps(document).encode()
    digest = hashlib.sha256(data).hexdigest()
    (layout / "blobs/sha256" / digest).write_bytes(data)
    return {"digest": f"sha256:{digest}", "size": len(data)}


def buildx_layout(layout: Path) -> tuple[dict[str, Image], dict[str, str]]:
    """``docker buildx build --platform … --output type=oci``: one index with images and what attests them (BuildKit,
    docs/attestations/attestation-storage.md).  Returns images and the digests of their attestations, by architecture."""
    mine = platforms.this_machine().architecture
    names = (mine, "s390x" if mine != "s390x" else "amd64")
    images = {
        name: build_image(layout, name, [base_layer(), Layer([file(f"usr/{name}", b"x" * 65)])], config={"architecture": name})
        for name in names
    }
    entries: list[dict[str, Any]] = []
    attestations = {}
    for name, image in images.items():
        entries.append({**image.descriptor, "platform": {"architecture": name, "os": "linux"}})
    for name, image in images.items():
        statement = put(layout, {"_type": "https://in-toto.io/Statement/v0.1", "subject": [{"name": name}]})
        unknown = {"architecture": "unknown", "os": "unknown"}
        config = put(layout, {**unknown, "config": {}, "rootfs": {"type": "layers", "diff_ids": [statement["digest"]]}})
        predicate = {"in-toto.io/predicate-type": "https://spdx.dev/Document"}
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", **config},
            "layers": [{"mediaType": IN_TOTO, **statement, "annotations": predicate}],
        }
        annotations = {
            "vnd.docker.reference.digest": image.manifest_digest,
            "vnd.docker.reference.type": "attestation-manifest",
        }
        made = {"mediaType": MANIFEST_TYPE, **put(layout, manifest), "annotations": annotations, "platform": unknown}
        attestations[name] = made["digest"]
        entries.append(made)
    index = put(layout, {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": entries})
    annotations = {
        "io.containerd.image.name": NAME,
        "org.opencontainers.image.created": "2026-01-01T00:00:00Z",
        "org.opencontainers.image.ref.name": "1",
    }
    top = {"mediaType": INDEX_TYPE, **index, "annotations": annotations}
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [top]}))
    return images, attestations


@pytest.mark.parametrize("reference", ["", ":1", f":{NAME}"])
def test_of_what_buildx_wrote_this_machines_image_is_taken_as_cfsctl_takes_it(
    reference: str, cfsctl: Cfsctl, repo: Path, tmp_path: Path
) -> None:
    images, _ = buildx_layout(tmp_path / "layout")
    mine = images[platforms.this_machine().architecture]
    done = import_image(repo, f"oci:{tmp_path}/layout{reference}", "app")
    assert done.plan.names == (("app", mine.manifest_digest),)
    cfsctl.assert_healthy(repo)
    cfsctl(repo, "oci", "pull", f"oci:{tmp_path}/layout:1", "pulled")
    assert cfsctl.tags(repo) == {"app": mine.manifest_digest, "pulled": mine.manifest_digest}


def test_attestations_of_buildx_are_no_images_and_come_along_with_all_platforms(
    cfsctl: Cfsctl, skopeo: Path, repo: Path, tmp_path: Path
) -> None:
    images, attestations = buildx_layout(tmp_path / "layout")
    done = import_image(repo, f"oci:{tmp_path}/layout", NAME, Options(all_platforms=True, keep_index=True))
    assert {name for name, _ in done.plan.names} == {NAME, *(f"{NAME}-linux-{name}" for name in images)}
    with Repository.open(repo) as opened:
        for name, image in images.items():
            assert rows.referrers(opened, Digest(image.manifest_digest)) == [attestations[name]]
    cfsctl.assert_healthy(repo)
    cfsctl(repo, "--no-upgrade", "gc")
    with serving(repo) as served:
        index = served.get("/v2/quay.io/apps/multi/manifests/1").json
        assert [entry["platform"]["architecture"] for entry in index["manifests"]] == [*images, "unknown", "unknown"]
        about = [entry["annotations"]["vnd.docker.reference.digest"] for entry in index["manifests"][2:]]
        assert about == [entry["digest"] for entry in index["manifests"][:2]]
        for name, image in images.items():
            options = ["--src-tls-verify=false", f"--override-arch={name}", "--override-os=linux"]
            skopeo_copy(skopeo, f"docker://{served.address}/{NAME}", f"dir:{tmp_path}/{name}", *options)
            assert (tmp_path / name / image.config_digest.removeprefix("sha256:")).read_bytes() == image.config_bytes


def test_a_layout_whose_index_names_the_platforms_itself(cfsctl: Cfsctl, repo: Path, tmp_path: Path) -> None:
    """No index below the one of the layout."""
    images, _ = buildx_layout(tmp_path / "layout")
    entries = [{**image.descriptor, "platform": {"architecture": name, "os": "linux"}} for name, image in images.items()]
    (tmp_path / "layout/index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": entries}))
    mine = images[platforms.this_machine().architecture]
    assert import_image(repo, f"oci:{tmp_path}/layout", "app").plan.names == (("app", mine.manifest_digest),)
    cfsctl.assert_healthy(repo)


# -- podman ------------------------------------------------------------------------------------------------------------


def test_an_image_of_podmans_storage_and_what_podman_saves(
    cfsctl: Cfsctl, podman: Path, skopeo: Path, repo: Path, tmp_path: Path, podman_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = podman_home / ".config/containers/policy.json"
    policy.parent.mkdir(parents=True)
    policy.write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
    monkeypatch.setenv("HOME", str(podman_home))
    store = ["--root", f"{podman_home}/root", "--runroot", f"{podman_home}/run", "--storage-driver", "vfs"]

    def run(*words: str) -> str:
        environment = clean_environment(podman_home)
        command = [podman, *store, *words]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def config_of(name: str) -> str:
        return str(cfsctl.json(repo, "--no-upgrade", "oci", "inspect", "--manifest", name)["config"]["digest"])

    images = [app_image(tmp_path / "layout", name) for name in ("one", "two")]
    for image in images:
        pulled = run("pull", "--quiet", image.source).strip()
        run("tag", pulled, f"localhost/{image.ref}:1")
    place = f"[vfs@{podman_home}/root+{podman_home}/run]"
    for image in images:
        import_image(repo, f"containers-storage:{place}localhost/{image.ref}:1", image.ref)
        assert config_of(image.ref) == image.config_digest
    archive = f"{tmp_path}/saved.tar"
    run("save", "--quiet", "--multi-image-archive", "-o", archive, *(f"localhost/{image.ref}:1" for image in images))
    with raises("ambiguous-name") as caught:
        import_image(repo, f"docker-archive:{archive}", "saved")
    assert set(caught.value.candidates) == {"localhost/one:1", "localhost/two:1"}
    for number, image in enumerate(images):
        import_image(repo, f"docker-archive:{archive}:localhost/{image.ref}:1", f"saved-{image.ref}")
        import_image(repo, f"docker-archive:{archive}:@{number}", f"number-{number}")
        assert config_of(f"saved-{image.ref}") == config_of(f"number-{number}") == image.config_digest
    cfsctl.assert_healthy(repo)
