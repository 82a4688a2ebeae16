"""Publishing a host to the real registry: what it uses stays, everything else is collected."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cfs_tags import Repository
from cfs_tags.fleet import restore as restoring
from cfs_tags.remote.client import Client
from cfs_tags.remote.transport import Transport
from cfs_tags.repo import layout
from cfs_tags.values import ContentId, Digest
from fleet.conftest import NAME, OS, push
from support.peers import Cfsctl, clean_environment
from support.registries import Between, Distribution, Tokens, distribution
from support.sysroots import Host, fill_twins, new_host

BOOTED, ROLLBACK = f"deployed-{NAME}-booted", f"deployed-{NAME}-rollback"


def untag(shop: Distribution, *tags: str) -> None:
    """Delete tags, as retention does upstream."""
    for tag in tags:
        assert shop.fetch(f"/v2/{OS}/manifests/{tag}", "DELETE").status == 202


def lose_images(shop: Distribution) -> None:
    """Delete the tags of all images upstream, and collect what no other tag keeps."""
    untag(shop, "same", "old", "new")
    shop.collect()


def done(said: Any) -> dict[str, str]:
    """What became of each tag."""
    return {row["tag"]: row["done"] for row in said.json["result"]["tags"]}


def seen(shop: Distribution) -> list[str]:
    return sorted(tag for tag in shop.tags(OS) if tag.startswith("seen-"))


def test_what_a_host_uses_has_tags_and_stays(publish: Any, host: Host, shop: Distribution) -> None:
    said = publish(host)
    assert said.status == 0, said
    assert done(said) == {BOOTED: "created", ROLLBACK: "created"}
    lose_images(shop)
    used = {host.pool.images[name].manifest for name in ("old", "new")}
    assert all(shop.is_pullable(OS, digest) for digest in used)
    assert shop.manifests(OS) == used | {said.result["artifact"]}


def test_nothing_changed_takes_one_request(publish: Any, host: Host, shop: Distribution) -> None:
    assert publish(host).result["unchanged"] is False
    with shop.counted() as asked:
        assert publish(host).result["unchanged"] is True
    assert [(one.method, one.status) for one in asked] == [("HEAD", 200)]


def test_the_artifact_is_a_referrer_of_what_is_booted(publish: Any, host: Host, shop: Distribution) -> None:
    said = publish(host)
    manifest = shop.fetch(f"/v2/{OS}/manifests/host-{NAME}").json
    assert manifest["artifactType"] == "application/vnd.cfs-tags.host.v1+json"
    assert manifest["subject"]["digest"] == host.pool.images["new"].manifest
    document = json.loads(base64.b64decode(manifest["config"]["data"]))
    assert document == said.result["document"]
    assert shop.fetch(f"/v2/{OS}/blobs/{manifest['layers'][0]['digest']}").json == document
    assert [(use["slot"], use["version"]) for use in document["uses"]] == [("booted", "new"), ("rollback", "old")]
    assert document["history"][0]["manifest"] == host.pool.images["new"].manifest
    images = [one.image for one in host.pool.images.values()] + list(host.pool.apps.values())
    layers = {layer["digest"][7:23] for image in images for layer in image.manifest["layers"]}
    assert set(document["layers"]) == layers


class Watch:
    """What must have a tag after every change that the client makes."""

    def __init__(self, shop: Distribution, monkeypatch: pytest.MonkeyPatch) -> None:
        self.digests: set[str] = set()
        self.changes = 0
        for name in ("put", "delete"):
            monkeypatch.setattr(Client, name, self._watched(shop, getattr(Client, name)))

    def _watched(self, shop: Distribution, original: Any) -> Any:
        def change(client: Client, *given: Any) -> Any:
            result = original(client, *given)
            answers = [shop.fetch(f"/v2/{OS}/manifests/{tag}", "HEAD") for tag in shop.tags(OS)]
            held = {answer.headers["Docker-Content-Digest"] for answer in answers}
            assert self.digests <= held, (original.__name__, given[0])
            self.changes += 1
            return result

        return change


def lay(host: Host, order: str) -> None:
    """Boot entries in that order, the first of which is booted."""
    shutil.rmtree(host.root / "boot/loader", ignore_errors=True)
    names = order.split()
    for name in names:
        if not host.state(name).exists():
            host.deploy(name)
    host.boot_entries(*names)
    host.booted = host.id(names[0])
    for name in host.pool.images:
        if name not in names and host.state(name).exists():
            shutil.rmtree(host.state(name))


@pytest.mark.parametrize(
    ("before", "after"),
    [("new old", "same new"), ("new old", "old new"), ("new same old", "old new same"), ("new same old", "same new old")],
)
def test_while_tags_move_nothing_is_without_one(
    before: str, after: str, publish: Any, host: Host, shop: Distribution, monkeypatch: pytest.MonkeyPatch
) -> None:
    lay(host, before)
    assert publish(host).status == 0
    untag(shop, "same", "old", "new")
    for name in after.split():
        if name not in before.split():
            push(shop, OS, host.pool.images[name].image, name)
    watch = Watch(shop, monkeypatch)
    watch.digests = {host.pool.images[name].manifest for name in set(before.split()) & set(after.split())}
    lay(host, after)
    said = publish(host)
    assert said.status == 0, said
    assert watch.changes >= 3
    tags = {tag for tag in shop.tags(OS) if tag.startswith("deployed-")}
    assert tags == {tag for tag, what in done(said).items() if what != "deleted"}
    assert len(tags) == len(after.split())
    assert len(seen(shop)) == 1


def test_what_the_registry_has_lost_is_said_and_restored(publish: Any, host: Host, shop: Distribution, skopeo: Path) -> None:
    lose_images(shop)
    said = publish(host)
    assert said.status == 4
    assert done(said) == {BOOTED: "lost", ROLLBACK: "lost"}
    assert {use["slot"] for use in said.json["result"]["document"]["uses"] if "repository" not in use} == {"booted", "rollback"}
    assert publish(host).status == 4  # it stays said
    said = publish(host, for_people=True)
    assert "the registry has lost 2 images: 'cfs-tag " in said.out
    assert " --restore' uploads what it lacks" in said.out
    with shop.counted() as asked:
        said = publish(host, "--restore")
    assert said.status == 0, said
    assert done(said) == {BOOTED: "restored", ROLLBACK: "restored"}
    for use in said.result["document"]["uses"]:
        digest = use.get("kept_as", use["manifest"])
        assert shop.is_pullable(OS, digest)
        source = f"docker://{shop.address}/{OS}@{digest}"
        copied = host.root.parent / f"copy-{use['slot']}"
        subprocess.run(
            [skopeo, "--insecure-policy", "copy", "--src-tls-verify=false", source, f"dir:{copied}"],
            check=True,
            capture_output=True,
            env=clean_environment(host.root.parent),
        )
    shop.collect()
    with shop.counted() as asked:
        assert publish(host).result["unchanged"] is True
    assert len(asked) == 1
    lay(host, "old new")
    said = publish(host)
    assert said.status == 0, said
    assert shop.is_pullable(OS, {row["slot"]: row["digest"] for row in said.result["tags"]}["booted"])


@pytest.mark.parametrize(("collections", "status"), [(1, 0), (2, 0), (99, 4)])
def test_a_registry_that_collects_between_blobs_and_manifest_gets_them_again(
    collections: int, status: int, publish: Any, host: Host, shop: Distribution, monkeypatch: pytest.MonkeyPatch
) -> None:
    lay(host, "new")
    lose_images(shop)
    pushed = 0
    original = restoring.restore

    def restore(*given: Any, **more: Any) -> bytes:
        nonlocal pushed
        manifest = original(*given, **more)
        pushed += 1
        if pushed <= collections:
            shop.collect()
        return manifest

    monkeypatch.setattr(restoring, "restore", restore)
    said = publish(host, "--restore")
    assert said.status == status, said
    assert done(said) == {BOOTED: "lost" if status else "restored"}
    assert pushed == min(collections + 1, 3)
    assert status or shop.is_pullable(OS, said.result["tags"][0]["digest"])


@pytest.mark.parametrize(("times", "status"), [(1, 0), (99, 4)])
def test_what_a_collection_takes_that_had_begun_before_the_manifest_came_is_pushed_again(
    times: int, status: int, publish: Any, host: Host, shop: Distribution, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The collector has marked before, and deletes afterwards: here it runs on a copy, and what it deletes there is deleted."""
    lay(host, "new")
    lose_images(shop)
    original, tags = Client.put, 0

    def put(client: Client, reference: str, *given: Any) -> None:
        nonlocal tags
        with shop.collecting_late(is_meant=reference == BOOTED and tags < times):
            original(client, reference, *given)
        tags += reference == BOOTED

    monkeypatch.setattr(Client, "put", put)
    said = publish(host, "--restore")
    assert said.status == status, said
    assert done(said) == {BOOTED: "lost" if status else "restored"}
    assert (BOOTED in shop.tags(OS)) == (not status)  # no tag on what is not whole, so that the next run sees it
    if status:
        times = 0
        said = publish(host, "--restore")
        assert done(said) == {BOOTED: "restored"}
    assert shop.is_pullable(OS, said.result["tags"][0]["digest"])


def test_a_compressed_layer_that_is_lost_comes_back_in_another_form(
    publish: Any, cfsctl: Cfsctl, shop: Distribution, tmp_path: Path, crane: Path
) -> None:
    pool = fill_twins(cfsctl, tmp_path / "pool", "compressed", "two")
    host = new_host(tmp_path / "host", pool)
    host.deploy("two")
    host.boot_entries("two")
    host.booted = host.id("two")
    said = publish(host, "--restore")
    assert said.status == 0, said
    (row,) = said.result["tags"]
    manifest = pool.images["two"].manifest
    assert (row["done"], row["manifest"]) == ("restored", manifest)
    assert row["digest"] != manifest
    assert shop.is_pullable(OS, row["digest"])
    found = shop.fetch(f"/v2/{OS}/manifests/{row['digest']}").json
    assert found["annotations"]["cfs-tags.manifest.original"] == manifest
    pulled = tmp_path / "pulled.tar"
    subprocess.run(
        [crane, "export", "--insecure", f"{shop.address}/{OS}@{row['digest']}", pulled],
        check=True,
        capture_output=True,
        env=clean_environment(tmp_path),
    )
    assert pulled.stat().st_size > 0
    assert publish(host).result["unchanged"] is True
    shutil.rmtree(tmp_path / "state")  # what was restored is found again by its annotation
    said = publish(host)
    assert said.status == 0, said
    assert said.result["tags"][0]["digest"] == row["digest"]
    other = b'{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}'
    shop.upload(OS, other)  # and somebody says that it is that image
    forged = {**found, "config": {**found["config"], "digest": Digest.of(other), "size": len(other)}}
    shop.tag(OS, BOOTED, json.dumps(forged).encode())
    untag(shop, *seen(shop), f"host-{NAME}")
    shutil.rmtree(tmp_path / "state")
    assert done(publish(host)) == {BOOTED: "lost"}
    said = publish(host, "--restore")
    assert said.result["tags"][0]["digest"] == row["digest"]


def test_retract_leaves_nothing(publish: Any, host: Host, shop: Distribution, tmp_path: Path) -> None:
    before = shop.tags(OS)
    publish(host)
    assert len(shop.tags(OS) - before) == 4
    said = publish(host, "--retract", "--dry-run")
    assert len(said.result["retracted"]) == 4
    shutil.rmtree(tmp_path / "state")  # what this machine remembers is not needed
    assert publish(host, "--retract").status == 0
    assert shop.tags(OS) == before


def test_a_run_that_was_stopped_anywhere_is_finished_by_the_next(
    publish: Any, host: Host, shop: Distribution, monkeypatch: pytest.MonkeyPatch
) -> None:
    lay(host, "new old")
    publish(host)
    wanted = {BOOTED: host.pool.images["old"].manifest, ROLLBACK: host.pool.images["new"].manifest}
    original = Transport._send
    for number in range(3, 30):
        lay(host, "new old")
        assert publish(host).status == 0
        lay(host, "old new")
        left = number

        def send(self: Transport, *given: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
            return original(self, *given)

        with monkeypatch.context() as patched:
            patched.setattr(Transport, "_send", send)
            status = publish(host).status
        assert publish(host).status == 0
        found = {tag: shop.fetch(f"/v2/{OS}/manifests/{tag}", "HEAD").headers["Docker-Content-Digest"] for tag in wanted}
        assert found == wanted
        assert {tag for tag in shop.tags(OS) if tag.startswith("deployed-")} == set(wanted)
        assert len(seen(shop)) == 1, number
        if status == 0:
            return
        assert status == 130
    pytest.fail("it was never finished")


def test_pins_and_bound_images_have_tags(publish: Any, host: Host, shop: Distribution) -> None:
    web = host.pool.apps["quay.io/apps/web:1"]
    push(shop, OS, web, "web")
    with Repository.open(
        host.repo, write=True, run="none", booted=host.booted, esp="none", boot=str(host.root / "boot")
    ) as repo:
        repo.deployments.migrate()
        repo.pins.pin("@rollback", name="good")
        manifest = Digest(web.manifest_digest)
        bound = f"streams/refs/cfs-tags/bound/{host.id('new')}/quay.io%2Fapps%2Fweb:1"
        (host.repo / bound).parent.mkdir(parents=True)
        (host.repo / bound).symlink_to(layout.ref_link(bound, ContentId.manifest(manifest)))
    said = publish(host)
    old = host.pool.images["old"].manifest
    slots = {row["slot"]: row["digest"] for row in said.result["tags"]}
    assert slots[f"pin-{old[7:19]}"] == old
    assert slots[f"bound-{manifest.hex[:12]}"] == manifest
    untag(shop, "web", "old", "new", "same")
    shop.collect()
    assert shop.is_pullable(OS, web.manifest_digest)
    lay(host, "new")  # the rollback goes, and the pin keeps it
    assert {row["slot"] for row in publish(host).result["tags"] if row["digest"] == old} == {f"pin-{old[7:19]}"}
    with Repository.open(
        host.repo, write=True, run="none", booted=host.booted, esp="none", boot=str(host.root / "boot")
    ) as repo:
        repo.pins.unpin("good")
    assert done(publish(host))[f"deployed-{NAME}-pin-{old[7:19]}"] == "deleted"


# -- other repositories ---------------------------------------------------------------------------------------------------


def test_an_image_of_another_repository_has_its_tag_there(publish: Any, host: Host, shop: Distribution) -> None:
    image = host.pool.images["new"]
    push(shop, "example/other", image.image, "new")
    origin = host.origin("new").read_text().replace(image.reference, f"{shop.address}/example/other:new")
    host.origin("new").write_text(origin)
    said = publish(host)
    rows = {row["slot"]: row["repository"] for row in said.result["tags"]}
    assert rows == {"booted": "example/other", "rollback": OS}
    shop.fetch("/v2/example/other/manifests/new", "DELETE")
    untag(shop, "new")
    shop.collect()
    assert shop.is_pullable("example/other", image.manifest)
    assert publish(host, "--retract").status == 0
    assert shop.tags("example/other") == set()


def test_no_index_stands_in_for_the_list_of_referrers_because_of_what_it_does(
    publish: Any, host: Host, shop: Distribution
) -> None:
    """What docs/decisions/0014 says of it: it takes what it should refuse, refuses what it should take, and keeps all in it."""
    artifact = Digest(publish(host).json["result"]["artifact"])
    subject = host.pool.images["new"].manifest
    assert shop.fetch(f"/v2/{OS}/referrers/{subject}").status == 404
    assert not any(tag.startswith("sha256-") for tag in shop.tags(OS))

    index = "application/vnd.oci.image.index.v1+json"
    size = len(shop.fetch(f"/v2/{OS}/manifests/{artifact}").body)
    listed = {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": artifact, "size": size}

    def put(*entries: Any, **headers: str) -> int:
        data = json.dumps({"schemaVersion": 2, "mediaType": index, "manifests": entries}).encode()
        path = f"/v2/{OS}/manifests/{subject.replace(':', '-')}"
        return shop.fetch(path, "PUT", data, {"Content-Type": index, **headers}).status

    assert put(listed) == 201
    assert put(**{"If-Match": f'"{Digest.of(b"another")}"'}) == 201  # another host's entry is gone
    assert put(listed, {**listed, "digest": Digest.of(b"gone")}) == 400
    assert put(listed) == 201
    assert publish(host, "--retract").status == 0
    untag(shop, "old", "new", "same")
    shop.collect()
    assert subject not in shop.manifests(OS)
    assert artifact in shop.manifests(OS)


# -- a registry that is not well ------------------------------------------------------------------------------------------


@pytest.fixture
def between(shop: Distribution, monkeypatch: pytest.MonkeyPatch) -> Iterator[Between]:
    """A proxy in front of the registry; waiting is quick."""
    made = Between(shop)
    monkeypatch.setattr("cfs_tags.remote.transport._BACKOFF", 0.01)
    yield made
    made.close()


@pytest.fixture
def through(publish: Any, between: Between) -> Any:
    """Publishes by way of the proxy."""
    import types

    return lambda host, *words: publish(host, *words, shop=types.SimpleNamespace(address=between.address))


@pytest.mark.parametrize("fault", [429, 500, 502, 503, 504, (429, {"Retry-After": "0"}), (503, {"Retry-After": "0"})])
def test_a_registry_that_fails_now_and_then_is_asked_again(fault: Any, through: Any, host: Host, between: Between) -> None:
    turn = 0

    def sometimes(method: str, path: str) -> Any:
        nonlocal turn
        turn += 1
        return fault if turn % 2 else None

    between.fault = sometimes
    said = through(host)
    assert said.status == 0, said
    assert done(said) == {BOOTED: "created", ROLLBACK: "created"}


def test_a_registry_that_never_answers_well_is_an_error_and_the_next_run_goes_on(
    through: Any, host: Host, between: Between
) -> None:
    between.fault = lambda method, path: 503 if method == "PUT" else None
    said = through(host)
    assert (said.status, said.json["error"]["code"]) == (1, "registry-failed")
    between.fault = lambda method, path: None
    assert done(through(host)) == {BOOTED: "created", ROLLBACK: "created"}


def test_a_registry_that_is_away_is_an_error(through: Any, host: Host, between: Between, shop: Distribution) -> None:
    shop.stop()
    said = through(host)
    assert (said.status, said.json["error"]["code"]) == (1, "registry-failed")  # 502, by the proxy
    between.close()
    said = through(host)
    assert (said.status, said.json["error"]["code"]) == (1, "registry-unreachable")
    shop.start()


def test_after_a_retraction_that_failed_every_tag_is_looked_at(
    through: Any, host: Host, between: Between, shop: Distribution
) -> None:
    """Some tags are gone, and the artifact is still the one that was published last."""
    through(host)
    between.fault = lambda method, path: 403 if method == "DELETE" and "/host-" in path else None
    assert through(host, "--retract").json["error"]["code"] == "registry-refused"
    assert BOOTED not in shop.tags(OS)
    between.fault = lambda method, path: None
    assert done(through(host)) == {BOOTED: "created", ROLLBACK: "created"}


def test_a_slow_registry_is_waited_for(through: Any, host: Host, between: Between) -> None:
    between.fault = lambda method, path: 0.1
    assert through(host).status == 0


def test_a_registry_that_restarts_meanwhile_is_asked_again(
    through: Any, host: Host, between: Between, shop: Distribution
) -> None:
    count = 0

    def restart(method: str, path: str) -> None:
        nonlocal count
        count += 1
        if count in (2, 5):
            shop.stop()
            shop.start()

    between.fault = restart
    assert through(host).status == 0


def test_a_registry_that_collects_before_any_request_takes_nothing_that_is_used(
    through: Any, host: Host, between: Between, shop: Distribution
) -> None:
    """Among them: the blob of the artifact, before the manifest that names it is there."""
    lay(host, "old new")
    assert through(host).status == 0
    untag(shop, "old", "new")
    for number in range(1, 40):
        lay(host, "new old" if number % 2 else "old new")
        count = 0

        def collect(method: str, path: str, at: int = number) -> None:
            nonlocal count
            count += 1
            if count == at:
                shop.collect()

        between.fault = collect
        said = through(host)
        assert said.status == 0, (number, said)
        between.fault = lambda method, path: None
        assert all(shop.is_pullable(OS, host.pool.images[name].manifest) for name in ("old", "new")), number
        if count < number:
            return
    pytest.fail("it was never finished")


@pytest.mark.parametrize("days", [-400, -3, 3, 400])
def test_a_wrong_clock_changes_nothing(
    days: int, publish: Any, host: Host, shop: Distribution, monkeypatch: pytest.MonkeyPatch
) -> None:
    import time

    real = time.time
    monkeypatch.setattr("time.time", lambda: real() + days * 86400)
    said = publish(host)
    assert said.result["document"]["time"][:8] == time.strftime("%Y%m%d", time.gmtime(real()))
    assert abs(said.result["document"]["clock"] + days * 86400) <= 2
    monkeypatch.setattr("time.time", real)
    assert publish(host).result["unchanged"] is True


def test_a_day_later_it_is_published_again(publish: Any, host: Host, shop: Distribution, tmp_path: Path) -> None:
    publish(host)
    (state,) = (tmp_path / "state").glob("*.json")
    known = json.loads(state.read_text())
    state.write_text(json.dumps({**known, "time": "20200101T000000Z"}))
    (first,) = seen(shop)
    said = publish(host)
    assert said.result["unchanged"] is False
    assert done(said) == {BOOTED: "unchanged", ROLLBACK: "unchanged"}
    assert [tag != first for tag in seen(shop)] in ([True], [False])


def test_another_host_with_the_same_name_is_said(publish: Any, host: Host, shop: Distribution, tmp_path: Path) -> None:
    publish(host)
    (tmp_path / "state").rename(tmp_path / "mine")
    lay(host, "old new")
    publish(host)  # another machine: it remembers nothing
    shutil.rmtree(tmp_path / "state")
    (tmp_path / "mine").rename(tmp_path / "state")
    lay(host, "new old")
    said = publish(host)
    assert [one["code"] for one in said.json["warnings"]] == ["host-name-taken"]


# -- who may do what ------------------------------------------------------------------------------------------------------


@pytest.fixture
def tokens(tmp_path: Path) -> Iterator[Tokens]:
    openssl = shutil.which("openssl")
    assert openssl is not None
    made = Tokens(tmp_path / "tokens", openssl)
    yield made
    made.close()


@pytest.fixture
def guarded(registry: Path, tmp_path: Path, tokens: Tokens) -> Iterator[Distribution]:
    """A registry that wants tokens."""
    with distribution(registry, tmp_path / "guarded", tokens.config) as running:
        yield running


def fill(guarded: Distribution, tokens: Tokens, host: Host, repository: str) -> None:
    """Put the images of a host there, as one who may."""
    access = [{"type": "repository", "name": repository, "actions": ["pull", "push"]}]
    guarded.authorization = f"Bearer {tokens.token('build', access, 300)}"
    for name, deployed in host.pool.images.items():
        push(guarded, repository, deployed.image, name)


def log_in(path: Path, registry: str, user: str, password: str) -> None:
    auth = base64.b64encode(f"{user}:{password}".encode()).decode()
    path.write_text(json.dumps({"auths": {registry: {"auth": auth}}}))


def test_credentials_become_tokens_and_expired_ones_new_ones(
    publish: Any, host: Host, guarded: Distribution, tokens: Tokens, tmp_path: Path
) -> None:
    fill(guarded, tokens, host, OS)
    tokens.users["web"] = "secret"
    tokens.rights["web", OS] = {"pull", "push", "delete"}
    tokens.seconds = -65  # over already, by more than the registry's grace: every request needs a new one
    log_in(tmp_path / "auth.json", guarded.address, "web", "secret")
    said = publish(host, shop=guarded)
    assert said.status == 4, said
    assert said.json["error"]["code"] == "registry-refused"
    tokens.seconds = 300
    before = tokens.given
    said = publish(host, shop=guarded)
    assert said.status == 0, said
    assert done(said) == {BOOTED: "created", ROLLBACK: "created"}
    assert tokens.given - before <= 3
    before = tokens.given
    with guarded.counted() as asked:
        assert publish(host, shop=guarded).result["unchanged"] is True
    assert (len(asked), tokens.given - before) == (1, 1)


def test_wrong_credentials_are_refused(publish: Any, host: Host, guarded: Distribution, tokens: Tokens, tmp_path: Path) -> None:
    tokens.users["web"] = "secret"
    for user, password in (("web", "wrong"), ("nobody", "secret")):
        log_in(tmp_path / "auth.json", guarded.address, user, password)
        said = publish(host, shop=guarded)
        assert (said.status, said.json["error"]["code"]) == (4, "registry-refused")
    (tmp_path / "auth.json").unlink()
    assert publish(host, shop=guarded).json["error"]["code"] == "registry-refused"


def test_with_rights_for_each_repository_a_host_cannot_speak_for_another(
    publish: Any, host: Host, guarded: Distribution, tokens: Tokens, tmp_path: Path
) -> None:
    """Each host has a repository of its own, and may only read that of the images."""
    fill(guarded, tokens, host, OS)
    for name in ("old", "new"):
        deployed = host.pool.images[name]
        text = host.origin(name).read_text().replace(deployed.reference, f"{guarded.address}/{OS}:{name}")
        host.origin(name).write_text(text)
    for user in ("web", "liar"):
        tokens.users[user] = "secret"
        tokens.rights[user, OS] = {"pull"}
        tokens.rights[user, f"fleet/{user}"] = {"pull", "push", "delete"}
    log_in(tmp_path / "auth.json", guarded.address, "web", "secret")
    said = publish(host, shop=guarded, place="fleet/web")
    assert said.status == 0, said
    assert {row["repository"] for row in said.result["tags"]} == {"fleet/web"}  # mounted: not a byte of a layer was sent
    assert not any(one.method == "PATCH" for one in guarded.asked())
    with guarded.counted() as asked:
        assert publish(host, shop=guarded, place="fleet/web").result["unchanged"] is True
    assert len(asked) == 1
    log_in(tmp_path / "auth.json", guarded.address, "liar", "secret")
    shutil.rmtree(tmp_path / "state")
    said = publish(host, shop=guarded, place="fleet/web")
    assert (said.status, said.json["error"]["code"]) == (4, "registry-refused")
