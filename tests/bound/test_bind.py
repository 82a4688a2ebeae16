"""App images that are bound to a deployment: read out of its EROFS image, kept by refs, retired with it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from cfs_tags import Repository, df
from cfs_tags.apps import platforms
from cfs_tags.apps.importing.choose import Options
from cfs_tags.cli.main import main
from cfs_tags.errors import FormatError
from cfs_tags.formats.boot import quadlet
from cfs_tags.host import bound, refs
from cfs_tags.host.rows import list_deployments
from cfs_tags.host.sysroot import Sysroot, SysrootView
from cfs_tags.repo import images, reflog
from cfs_tags.tags import names
from cfs_tags.tags.rows import list_tags
from cfs_tags.values import DeploymentId
from support import tagging
from support.images import (
    Layer,
    app_image,
    base_layer,
    build_image,
    build_index,
    directory,
    file,
    host_layer,
    pull_image,
    symlink,
)
from support.importing import import_image

if TYPE_CHECKING:
    from pathlib import Path

    from support.peers import Cfsctl

WEB = "quay.io/apps/web:1"
DATABASE = "quay.io/apps/db"
ABSENT = "quay.io/apps/absent:1"


def quadlets() -> Layer:
    """What an operating system image with bound images has in addition."""
    units = "usr/share/containers/systemd"
    return Layer(
        [
            *(directory(name) for name in ("usr", "usr/lib", "usr/lib/bootc", quadlet.BOUND_DIRECTORY)),
            *(directory(name) for name in ("usr/share", "usr/share/containers", units)),
            file(f"{units}/web.image", f"# a comment\n[Image]\nImage={WEB}\n"),
            file(f"{units}/db.container", f"[Unit]\nImage=wrong\n[Container]\nImage = {DATABASE}\nExec=run\n" + "#" * 200),
            file(f"{units}/absent.image", f"[Image]\nImage={ABSENT}\n"),
            file(f"{units}/broken.image", "[Image]\n"),
            symlink(f"{quadlet.BOUND_DIRECTORY}/web.image", f"/{units}/web.image"),
            symlink(f"{quadlet.BOUND_DIRECTORY}/db.container", "../../../share/containers/systemd/db.container"),
            symlink(f"{quadlet.BOUND_DIRECTORY}/absent.image", f"/{units}/absent.image"),
            symlink(f"{quadlet.BOUND_DIRECTORY}/broken.image", f"/{units}/broken.image"),
            symlink(f"{quadlet.BOUND_DIRECTORY}/lost.image", "/nowhere"),
            file(f"{quadlet.BOUND_DIRECTORY}/README", "not a quadlet\n"),
        ]
    )


@pytest.fixture
def host(cfsctl: Cfsctl, filled_repo, tmp_path: Path) -> tuple[Path, DeploymentId]:
    """A sysroot with one deployment that binds app images, some of which the repository holds."""

    def fill(cfsctl: Cfsctl, repo: Path) -> None:
        layout = repo.parent / "layout"
        shared = base_layer()
        layers = [host_layer("1", boot_content=True), quadlets()]
        image = build_image(layout, "host", layers, labels={"containers.bootc": "1"})
        pull_image(cfsctl, repo, image, "localhost/host", bootable=True)
        pull_image(cfsctl, repo, app_image(layout, "web", [shared]), WEB)
        pull_image(cfsctl, repo, app_image(layout, "db", [shared]), f"docker://{DATABASE}:latest")

    sysroot = tmp_path / "host"
    sysroot.mkdir()
    repo = filled_repo("bound", fill, sysroot / "composefs")
    _, boot = cfsctl.images_of(repo, "localhost/host")
    (sysroot / "state/deploy" / boot).mkdir(parents=True)
    return sysroot, DeploymentId.parse(boot)


def view(sysroot: Path) -> SysrootView:
    parts = Sysroot.find(str(sysroot), without=("boot", "esp", "run", "kernel"))
    with Repository.open(sysroot / "composefs") as repo:
        return SysrootView.read(parts, repo.algorithm)


def test_held_images_get_refs_and_the_others_are_named(host: tuple[Path, DeploymentId]) -> None:
    sysroot, name = host
    with Repository.open(sysroot / "composefs", write=True) as repo:
        made = bound.bind(repo, name)
        assert {(row.name, row.done) for row in made.rows} == {
            (WEB, "bound"),
            (DATABASE, "bound"),
            (ABSENT, "missing"),
            ("broken.image", "unreadable"),
            ("lost.image", "unreadable"),
        }
        held = {row.name: row.digest for row in made.rows if row.digest is not None}
        assert held == {WEB: names.resolve(repo, WEB), DATABASE: names.resolve(repo, f"docker://{DATABASE}:latest")}
        assert bound.bound_names(repo, name) == (DATABASE, WEB)
        again = bound.bind(repo, name)
        assert not again.changes
        assert {row.done for row in again.rows if row.digest is not None} == {"unchanged"}


def test_a_bound_image_outlives_its_tag_in_a_real_collection(host: tuple[Path, DeploymentId], cfsctl: Cfsctl) -> None:
    sysroot, name = host
    where = sysroot / "composefs"
    with Repository.open(where, write=True) as repo:
        digest = names.resolve(repo, WEB)
        refs.create(repo, name, names.resolve(repo, "localhost/host"), bind=True)
    cfsctl(where, "oci", "untag", WEB)
    cfsctl(where, "gc")
    cfsctl.assert_healthy(where)
    with Repository.open(where) as repo:
        assert names.resolve(repo, f"@{digest}") == digest
        assert WEB not in {tag.name for tag in list_tags(repo)}
        assert list_deployments(repo, view(sysroot))[0].bound == (DATABASE, WEB)


def test_binding_again_follows_a_tag_that_moved(host: tuple[Path, DeploymentId], cfsctl: Cfsctl) -> None:
    sysroot, name = host
    where = sysroot / "composefs"
    with Repository.open(where, write=True) as repo:
        bound.bind(repo, name)
        other = names.resolve(repo, f"docker://{DATABASE}:latest")
        cfsctl(where, "oci", "tag", other, WEB)
        rows = {row.name: row for row in bound.bind(repo, name).rows}
        assert rows[WEB].done == "moved"
        assert rows[WEB].digest == other


def test_bound_refs_are_retired_with_their_deployment(host: tuple[Path, DeploymentId]) -> None:
    sysroot, name = host
    with Repository.open(sysroot / "composefs", write=True) as repo:
        refs.create(repo, name, names.resolve(repo, "localhost/host"), bind=True)
        assert refs.retire(repo, lambda: view(sysroot), grace=0).rows[0].done == "kept"
        (sysroot / "state/deploy" / name).rmdir()
        assert refs.retire(repo, lambda: view(sysroot), grace=0).rows[0].done == "retired"
        assert bound.bound_names(repo, name) == ()


def test_bound_refs_alone_are_retired_with_their_deployment_too(host: tuple[Path, DeploymentId]) -> None:
    """``bind`` takes any deployment that there is; that bootc removed it before it had a ref must not keep its images."""
    sysroot, name = host
    with Repository.open(sysroot / "composefs", write=True) as repo:
        bound.bind(repo, name)
        assert refs.retire(repo, lambda: view(sysroot), grace=0).rows[0].done == "kept"
        (sysroot / "state/deploy" / name).rmdir()
        (row,) = list_deployments(repo, view(sysroot))
        assert (row.id, row.state) == (name, "gone")
        assert refs.retire(repo, lambda: view(sysroot), grace=0).rows[0].done == "retired"
        assert bound.bound_names(repo, name) == ()
        assert list_deployments(repo, view(sysroot)) == []


def test_bound_refs_of_a_deployment_that_was_not_seen_yet_have_the_grace_time(host: tuple[Path, DeploymentId]) -> None:
    sysroot, name = host
    (sysroot / "state/deploy" / name).rmdir()
    with Repository.open(sysroot / "composefs", write=True) as repo:
        bound.bind(repo, name)
        assert refs.retire(repo, lambda: view(sysroot)).rows[0].done == "kept"
        assert len(bound.bound_names(repo, name)) == 2


def test_what_goes_with_a_deployment_is_counted_with_it(host: tuple[Path, DeploymentId]) -> None:
    """Its three links and its bound images are one name for ``df``: retiring takes them together."""
    sysroot, name = host
    with Repository.open(sysroot / "composefs", write=True) as repo:
        refs.create(repo, name, names.resolve(repo, "localhost/host"), bind=True)
        tagging.delete(repo, ["localhost/host", WEB])
        before = df.measure(repo, [f"@deployment/{name}"])
        (sysroot / "state/deploy" / name).rmdir()
        refs.retire(repo, lambda: view(sysroot), grace=0)
        after = df.measure(repo)

    (row,) = [row for row in before.rows if row.owner == "deployment"]
    assert row.name == f"@deployment/{name}"
    assert before.without == row.freed == after.dead.less(before.dead)
    assert after.live == before.live.less(row.freed)


def test_the_ref_of_a_deployment_is_made_by_the_start_of_its_id_or_its_state(
    host: tuple[Path, DeploymentId], capsys: pytest.CaptureFixture[str]
) -> None:
    sysroot, name = host
    create = ["--sysroot", str(sysroot), "create", "--dry-run"]
    for words in ((name[:12],), (f"@deployment/{name[:12]}",), ("booted", "--booted", name[:12], "--esp", "none")):
        assert main([*create, "--deployment", words[0], "localhost/host", "--bind", *words[1:]]) == 0
        assert f"@deployment/{name}" in capsys.readouterr().out
    assert main([*create, "x:1", "localhost/host", "--run", "none"]) == 2
    assert "--run goes with --deployment" in capsys.readouterr().err


def test_command_line_says_what_is_missing(host: tuple[Path, DeploymentId], capsys: pytest.CaptureFixture[str]) -> None:
    sysroot, name = host
    assert main(["--sysroot", str(sysroot), "bind", name[:12], "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert f"{ABSENT}" in shown
    assert "missing" in shown
    assert main(["--sysroot", str(sysroot), "create", "--deployment", name, "localhost/host", "--bind"]) == 0
    assert f"missing: {ABSENT} (the repository does not hold it)" in capsys.readouterr().out
    assert main(["--sysroot", str(sysroot), "deployments"]) == 0
    assert f"{name[:12]}: keeps {WEB}" in capsys.readouterr().out
    assert main(["--sysroot", str(sysroot), "create", "x", "y", "--bind"]) == 2


ODD = {
    "an image with a name of 300 characters": b"[Image]\nImage=" + b"a" * 300 + b"@DIGEST\n",
    "a quadlet of more than a mebibyte": b"[Image]\nImage=quay.io/none:1\n" + b"#" * (2 << 20),
    "a directory": None,
    "the parent directory": b"[Image]\nImage=..\n",
    "a control character": b"[Image]\nImage=\x1b[31mred@DIGEST\n",
    "a digest alone": b"[Image]\nImage=@DIGEST\n",
}


@pytest.mark.parametrize("what", ODD)
def test_an_odd_quadlet_is_one_marked_row_and_the_rest_is_bound(
    what: str, cfsctl: Cfsctl, new_repo, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sysroot = tmp_path / "host"
    sysroot.mkdir()
    repo = new_repo(sysroot / "composefs")
    web = app_image(tmp_path / "layout", "web", [base_layer()])
    data = ODD[what]
    units = "usr/share/q"
    odd = file(f"{units}/odd.image", data.replace(b"DIGEST", web.manifest_digest.encode())) if data else None
    layer = Layer(
        [
            *(directory(name) for name in ("usr", "usr/lib", "usr/lib/bootc", quadlet.BOUND_DIRECTORY, "usr/share", units)),
            odd if odd is not None else directory(f"{units}/odd.image"),
            file(f"{units}/web.image", f"[Image]\nImage={WEB}\n"),
            symlink(f"{quadlet.BOUND_DIRECTORY}/odd.image", f"/{units}/odd.image"),
            symlink(f"{quadlet.BOUND_DIRECTORY}/web.image", f"/{units}/web.image"),
        ]
    )
    host = build_image(
        tmp_path / "layout", "host", [host_layer("1", boot_content=True), layer], labels={"containers.bootc": "1"}
    )
    pull_image(cfsctl, repo, host, "localhost/host", bootable=True)
    pull_image(cfsctl, repo, web, WEB)
    _, boot = cfsctl.images_of(repo, "localhost/host")
    (sysroot / "state/deploy" / boot).mkdir(parents=True)
    assert main(["--sysroot", str(sysroot), "create", "--deployment", boot, "localhost/host", "--bind"]) == 0
    with Repository.open(repo) as opened:
        assert bound.bound_names(opened, DeploymentId.parse(boot)) == (WEB,)
        rows = bound.plan_bind(opened, DeploymentId.parse(boot)).rows
    assert [(row.name, row.done) for row in rows] == [("odd.image", "unreadable"), (WEB, "unchanged")]
    assert (repo / "streams/refs/cfs-tags/deployments" / boot).is_symlink()
    assert "odd.image" in capsys.readouterr().out
    cfsctl.assert_healthy(repo)


def test_a_bound_image_whose_tag_went_is_unchanged_and_an_incomplete_one_is_missing(
    host: tuple[Path, DeploymentId], cfsctl: Cfsctl
) -> None:
    sysroot, name = host
    where = sysroot / "composefs"
    with Repository.open(where, write=True) as repo:
        bound.bind(repo, name)
        digest = names.resolve(repo, WEB)
        cfsctl(where, "oci", "untag", WEB)
        again = bound.bind(repo, name)
        assert not again.changes
        assert {row.name: (row.done, row.digest) for row in again.rows}[WEB] == ("unchanged", digest)
        config = next(where.glob(f"streams/oci-config-{images.load(repo, digest).manifest.config.digest}"))
        config.resolve().unlink()
        row = next(row for row in bound.plan_bind(repo, name).rows if row.name == WEB)
        assert row.done == "missing"


def test_a_bound_image_may_go_by_the_digest_of_an_index_that_is_kept(
    host: tuple[Path, DeploymentId], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which is what a pull says that the image's digest is, where there are several platforms."""
    sysroot, name = host
    images = {
        machine: build_image(tmp_path / "multi", machine, [base_layer()], config={"architecture": machine})
        for machine in ("amd64", "s390x")
    }
    digest = build_index(tmp_path / "multi", "multi", images)
    source = f"oci:{tmp_path}/multi:multi"
    options = Options(platform=platforms.parse("linux/s390x"), keep_index=True)
    import_image(sysroot / "composefs", source, "other", options)
    quadlets = [("one.image", lambda: f"[Image]\nImage=quay.io/x/y@{digest}\n".encode())]
    monkeypatch.setattr(bound, "_quadlets", lambda repo, name: iter(quadlets))
    with Repository.open(sysroot / "composefs", write=True) as repo:
        (row,) = bound.bind(repo, name).rows
        assert (row.done, row.digest) == ("bound", images["s390x"].manifest_digest)
        tagging.delete(repo, ["other"])
        (row,) = bound.bind(repo, name).rows  # the index went with its tag; the image stays bound
        assert (row.done, row.digest) == ("unchanged", images["s390x"].manifest_digest)


def test_deployment_and_bound_refs_are_made_in_one_transaction(host: tuple[Path, DeploymentId]) -> None:
    sysroot, name = host
    with Repository.open(sysroot / "composefs", write=True) as repo:
        refs.create(repo, name, names.resolve(repo, "localhost/host"), bind=True)
        entries = [entry for entry in reflog.all_entries(repo).entries if f"/{name}" in entry.ref]
    assert {entry.ref.split("/")[3] for entry in entries} == {"deployments", "configs", "bound"}
    assert len(entries) == 5
    assert len({entry.transaction for entry in entries}) == 1


def test_show_lists_what_is_bound_and_to_what(host: tuple[Path, DeploymentId], capsys: pytest.CaptureFixture[str]) -> None:
    sysroot, name = host
    main(["--sysroot", str(sysroot), "create", "--deployment", name, "localhost/host", "--bind"])
    capsys.readouterr()

    def shown(*words: str) -> str:
        assert main(["--sysroot", str(sysroot), "show", *words]) == 0
        return capsys.readouterr().out

    for target in (f"@deployment/{name}", "localhost/host"):
        assert f"  {WEB}  sha256:" in shown(target).partition("Bound app images:")[2]
        bound = json.loads(shown(target, "--json"))["result"]["bound"]
        assert [(one["deployment"], one["name"]) for one in bound] == [(name, DATABASE), (name, WEB)]
    assert f"  @deployment/{name} (deployment, bound)" in shown(WEB)
    result = json.loads(shown(WEB, "--json"))["result"]
    assert result["bound"] == []
    assert {(one["name"], one["home"]) for one in result["named_by"]} == {(WEB, "shared"), (f"@deployment/{name}", "bound")}


@pytest.mark.parametrize(
    ("name", "data", "wanted"),
    [
        ("x.conf", b"[Image]\nImage=a\n", "ends in"),
        ("x.image", b"[Container]\nImage=a\n", "Image="),
        ("x.image", b"[Image]\nImage=a\nAuthFile=/etc/x\n", "AuthFile"),
        ("x.container", b"[Container]\nImage=%h/a\n", "specifier"),
        ("x.image", b"[Image]\n#Image=a\n", "Image="),
        ("x.image", b"\xff" * 10, "Image="),
        ("x.image", b"#" * (quadlet.MAX_QUADLET + 1), "at most"),
    ],
)
def test_quadlets_that_bootc_refuses_are_refused(name: str, data: bytes, wanted: str) -> None:
    with pytest.raises(FormatError, match=wanted):
        quadlet.bound_image(name, data)


def test_a_doubled_percent_sign_stands_for_one() -> None:
    assert quadlet.bound_image("x.image", b"[Image]\nImage=a%%b\n") == "a%b"
