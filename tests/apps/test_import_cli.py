"""``import``, ``export`` and the presets of ``list`` as users type them."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import pytest

from cfs_tags.apps import workdir
from cfs_tags.cli.main import main
from cfs_tags.cli.progress import stoppable
from cfs_tags.repo import fsops
from cfs_tags.repo.store import WriteRepo
from support.images import (
    Layer,
    app_image,
    base_layer,
    build_artifact,
    build_image,
    build_index,
    directory,
    file,
    random_bytes,
    skopeo_copy,
    static_image,
)
from support.importing import import_image
from support.interrupt import fail_after
from support.peers import Cfsctl
from support.serving import serving
from support.trees import copy_tree, tree

if TYPE_CHECKING:
    from apps.conftest import Run

NewRepo = Callable[..., Path]


def test_import_says_what_it_did_and_what_it_would_do(run: Run, repo: Path, tmp_path: Path) -> None:
    image = app_image(tmp_path / "layout", "app")
    before = tree(repo)
    said = run("import", image.source, "quay.io/org/app:1", "--dry-run")
    assert said.splitlines()[0] == f"would be imported: quay.io/org/app:1 -> {image.manifest_digest}"
    assert tree(repo) == before
    said = run("import", image.source, "quay.io/org/app:1", "--reason", "asked for")
    assert said.splitlines()[0] == f"imported: quay.io/org/app:1 -> {image.manifest_digest}"
    assert run("import", image.source, "quay.io/org/app:1") == f"unchanged: quay.io/org/app:1 -> {image.manifest_digest}\n"
    assert "asked for (import oci:" in run("log", "quay.io/org/app:1")


def test_import_as_json(run: Run, tmp_path: Path) -> None:
    image = app_image(tmp_path / "layout", "app")
    result = json.loads(run("import", image.source, "--json"))["result"]
    assert result["tags"] == [{"name": "app", "digest": image.manifest_digest, "done": "created", "home": "shared"}]
    (shown,) = result["images"]
    assert shown["config_digest"] == image.config_digest
    assert shown["platform"] == "linux/amd64"
    assert [layer["key"] for layer in shown["layers"]] == image.diff_ids
    assert all(layer["read"] for layer in shown["layers"])
    assert result["objects_written"] > 0
    again = json.loads(run("import", image.source, "--json", "--dry-run"))["result"]
    assert not any(layer["read"] for layer in again["images"][0]["layers"])


def test_an_index_without_the_platform_ends_with_4_and_its_platforms(run: Run, tmp_path: Path) -> None:
    build_index(tmp_path / "layout", "multi", {"vax": app_image(tmp_path / "layout", "app")})
    error = json.loads(run("import", f"oci:{tmp_path}/layout:multi", "x", "--json", status=4))["error"]
    assert error["facts"]["platforms"] == ["linux/vax"]
    run("import", f"oci:{tmp_path}/layout:multi", "x", "--platform", "linux/vax")


def test_statuses_of_what_cannot_be(run: Run, repo: Path, tmp_path: Path) -> None:
    image = app_image(tmp_path / "layout", "app")
    run("import", "nothing", status=2)
    run("import", "oci:/absent", "x", status=3)
    run("import", image.source, "@x", status=2)
    run("import", image.source, "localhost/bootc-x", status=4)
    run("import", image.source, "x", "--shared", "--private", status=2)
    run("import", image.source, "x", "--max-layer-size", "0", status=2)
    run("import", image.source, "x", "--max-layer-size", "0.000001", status=6)
    run("import", image.source, "x")
    run("import", app_image(tmp_path / "layout", "other").source, "x", status=4)
    run("import", app_image(tmp_path / "layout", "other").source, "x", "--force")
    run("export", "absent", f"oci:{tmp_path}/out", status=3)
    run("export", "x", "out", status=2)
    run("export", "x", f"oci:{tmp_path}/out", "--compress", "lzma", status=2)
    (tmp_path / "file").touch()
    run("export", "x", f"oci-archive:{tmp_path}/file", status=4)
    with subprocess.Popen(["flock", "-F", str(repo), "sleep", "30"]) as holder:
        try:
            while subprocess.run(["flock", "-n", "-s", str(repo), "true"], check=False).returncode == 0:
                pass
            run("import", image.source, "y", "--lock-timeout", "0.1", status=5)
            run("export", "x", f"oci:{tmp_path}/out", "--lock-timeout", "0.1", status=5)
        finally:
            holder.kill()


def test_what_skopeo_says_is_the_reason_without_its_ornaments(
    skopeo: Path, repo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for source, reason in (("docker://127.0.0.1:1/x/y:1", "connection refused"), ("nowhere:x", 'unknown transport "nowhere"')):
        assert main(["--repo", str(repo), "import", source, "x"]) == 1
        said = capsys.readouterr().err
        assert said.startswith("cfs-tag: skopeo ended with status 1: ")
        assert reason in said
        assert "level=" not in said
        assert "\\" not in said


def test_export_says_that_the_manifest_is_another_one(run: Run, tmp_path: Path) -> None:
    image = app_image(tmp_path / "layout", "app")
    run("import", image.source)
    said = run("export", "app", f"oci:{tmp_path}/out:app").splitlines()
    assert f"made from {image.manifest_digest}" in said[1]
    assert said[2] == f"image ID: {image.config_digest}"
    result = json.loads(run("export", "app", f"oci:{tmp_path}/out:app", "--json"))["result"]
    assert result["original_digest"] == image.manifest_digest != result["digest"]
    run("import", f"oci:{tmp_path}/out:app", "plain")
    said = run("export", "plain", f"oci:{tmp_path}/out2:app").splitlines()
    assert said[1] == f"manifest: {result['digest']}"


def test_an_image_from_a_registry_and_only_what_is_missing(
    skopeo: Path, new_repo: NewRepo, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "home/.config/containers/registries.conf"
    policy = tmp_path / "home/.config/containers/policy.json"
    policy.parent.mkdir(parents=True)
    policy.write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    there = new_repo(tmp_path / "there")
    image = app_image(tmp_path / "layout", "app", [base_layer().compressed("none")])
    image = build_image(tmp_path / "layout", "app", [layer.compressed("none") for layer in image.layers])
    import_image(there, image.source, "app:1")
    with serving(there) as served:
        config.write_text(f'[[registry]]\nlocation = "{served.address}"\ninsecure = true\n')
        source = f"docker://{served.address}/app:1"
        result = json.loads(run("import", source, "--json"))["result"]
        assert result["tags"][0]["name"] == f"{served.address}/app:1"
        assert result["tags"][0]["digest"] == image.manifest_digest
        before = len(served.log)
        again = json.loads(run("import", source, "again", "--json"))["result"]
        assert again["objects_written"] == 0
        assert not [line for line in served.log[before:] if "/blobs/" in line]


def test_of_an_image_with_new_config_alone_a_registry_is_asked_for_the_config_alone(
    skopeo: Path, new_repo: NewRepo, run: Run, repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home/.config/containers"
    home.mkdir(parents=True)
    (home / "policy.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    layers = [base_layer().compressed("none")]
    one = build_image(tmp_path / "layout", "one", layers)
    two = build_image(tmp_path / "layout", "two", layers, labels={"v": "2"})
    there = new_repo(tmp_path / "there")
    import_image(there, one.source, "app:1")
    import_image(there, two.source, "app:2")
    import_image(repo, one.source, "mine:1")
    with serving(there) as served:
        (home / "registries.conf").write_text(f'[[registry]]\nlocation = "{served.address}"\ninsecure = true\n')
        run("import", f"docker://{served.address}/app:2", "mine:2")
        fetched = {line.rpartition("/blobs/")[2].split()[0] for line in served.log if "/blobs/" in line}
    assert {digest.strip('"') for digest in fetched} == {two.config_digest}


def test_an_image_of_podman_is_imported_from_its_storage(
    skopeo: Path,
    podman: Path,
    run: Run,
    cfsctl: Cfsctl,
    repo: Path,
    tmp_path: Path,
    podman_home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from support.peers import clean_environment

    image = app_image(tmp_path / "layout", "app")
    skopeo_copy(skopeo, image.source, f"oci-archive:{tmp_path}/app.tar:localhost/app:1")
    store = ["--root", f"{tmp_path}/store", "--runroot", str(podman_home), "--storage-driver", "vfs"]
    environment = clean_environment(tmp_path)
    monkeypatch.setenv("HOME", environment["HOME"])
    load = [str(podman), *store, "load", "-q", "-i", f"{tmp_path}/app.tar"]
    subprocess.run(load, check=True, env=environment, capture_output=True)
    said = run("import", f"containers-storage:[vfs@{tmp_path}/store+{podman_home}]localhost/app:1", "app")
    assert said.startswith("imported: app ->")
    shown = json.loads(run("show", "app", "--json"))["result"]
    assert shown["config_digest"] == image.config_digest
    assert [layer["diff_id"] for layer in shown["layers"]] == image.diff_ids
    cfsctl.assert_healthy(repo)


def test_progress_is_shown_on_a_terminal(repo: Path, tmp_path: Path) -> None:
    layers = [Layer([directory("usr"), file("usr/f", random_bytes("f", 3 << 20))], "none"), base_layer()]
    image = build_image(tmp_path / "layout", "app", layers)
    total = sum(len(layer.blob) for layer in image.layers)
    told: list[tuple[int, int]] = []
    import_image(repo, image.source, progress=lambda done, total: told.append((done, total)))
    assert told == sorted(told)
    assert told[-1] == (total, total)
    master, slave = os.openpty()
    command = [sys.executable, "-m", "cfs_tags", "--repo", str(repo), "import", image.source, "app", "--force"]
    for path in (repo / "streams").glob("oci-*"):
        path.unlink()
    done = subprocess.run(command, stderr=slave, stdout=subprocess.PIPE, check=False)
    os.close(slave)
    shown = os.read(master, 65536).decode()
    os.close(master)
    assert done.returncode == 0, shown
    assert f" of {total / 2**20:.1f} MiB" in shown
    assert shown.endswith("\x1b[2K"), "and it is gone afterwards"


def slow(directory: Path, program: str) -> Path:
    """In the place of a program, one that takes its time; the file that its process number will be in."""
    directory.mkdir()
    pid = directory / "pid"
    (directory / program).write_text(f"#!/bin/sh\necho $$ > {pid}.new; mv {pid}.new {pid}; exec sleep 60\n")
    (directory / program).chmod(0o755)
    return pid


def start(repo: Path, environment: dict[str, str], *words: str, group: bool = False) -> subprocess.Popen[str]:
    """The command, in a process group of its own where ``group``."""
    command = [sys.executable, "-m", "cfs_tags", "--repo", str(repo), *words]
    settings = {**os.environ, **environment}
    return subprocess.Popen(command, env=settings, stderr=subprocess.PIPE, text=True, start_new_session=group)


def until(condition: Callable[[], bool]) -> None:
    for _ in range(600):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_request_to_end_ends_skopeo_too_and_leaves_nothing(number: int, repo: Path, tmp_path: Path) -> None:
    pid = slow(tmp_path / "bin", "skopeo")
    (tmp_path / "tmp").mkdir()
    environment = {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "TMPDIR": str(tmp_path / "tmp")}
    before = tree(repo)
    with start(repo, environment, "import", "containers-storage:app", "app") as process:
        until(pid.exists)
        process.send_signal(number)
        assert process.wait(20) == 130
    assert not Path(f"/proc/{pid.read_text().strip()}").exists()
    assert list((tmp_path / "tmp").iterdir()) == []
    assert tree(repo) == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("whole_group", [False, True], ids=["alone", "all"])
def test_a_request_to_end_while_layers_are_read_ends_the_helper_too_and_leaves_garbage_at_most(
    number: int, whole_group: bool, cfsctl: Cfsctl, repo: Path, tmp_path: Path
) -> None:
    """A terminal and systemd tell the whole group."""
    files = [file(f"usr/{name}", b"%07d" % name * 700) for name in range(20_000)]
    image = build_image(tmp_path / "layout", "app", [Layer([directory("usr"), *files], "none")])
    with start(repo, {}, "import", image.source, "app", group=True) as process:
        until(lambda: sum(1 for _ in (repo / "objects").glob("*/*")) > 50)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        (os.killpg if whole_group else os.kill)(process.pid, number)
        assert process.wait(20) == 130
    assert len(children) == (1 if len(os.sched_getaffinity(0)) > 1 else 0)
    assert not any(Path(f"/proc/{child}").exists() for child in children)
    assert list((repo / "streams").glob("oci-*")) == []
    cfsctl.assert_healthy(repo)


def test_a_killed_import_takes_its_second_process_along(repo: Path, tmp_path: Path) -> None:
    files = [file(f"usr/{name}", b"%07d" % name * 700) for name in range(20_000)]
    image = build_image(tmp_path / "layout", "app", [Layer([directory("usr"), *files], "none")])
    with start(repo, {}, "import", image.source, "app", group=True) as process:
        until(lambda: sum(1 for _ in (repo / "objects").glob("*/*")) > 50)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.kill()
        process.wait(20)
    assert len(children) == (1 if len(os.sched_getaffinity(0)) > 1 else 0)
    until(lambda: not any(Path(f"/proc/{child}").exists() for child in children))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_request_to_end_at_the_very_moment_when_a_program_starts_ends_it(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = slow(tmp_path / "bin", "skopeo")
    start_child = subprocess.Popen

    def interrupted(*arguments: Any, **keywords: Any) -> Any:
        child = start_child(*arguments, **keywords)
        until(pid.exists)
        signal.raise_signal(number)
        return child

    monkeypatch.setattr(subprocess, "Popen", interrupted)
    with stoppable(), pytest.raises(KeyboardInterrupt):
        workdir.run(str(tmp_path / "bin/skopeo"))
    assert not Path(f"/proc/{pid.read_text().strip()}").exists()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_request_to_end_while_an_archive_comes_in_leaves_nothing(cfsctl: Cfsctl, repo: Path, tmp_path: Path) -> None:
    image = build_image(tmp_path / "layout", "app", [Layer([directory("usr"), file("usr/f", bytes(70) * 100_000)], "none")])
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    (tmp_path / "tmp").mkdir()
    with start(repo, {"TMPDIR": str(tmp_path / "tmp")}, "import", f"docker-archive:{pipe}", "app") as process:
        archive = pipe.open("wb", buffering=0)
        archive.write(bytes(image.layers[0].tar[:200_000]))
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 130
        archive.close()
    assert list((tmp_path / "tmp").iterdir()) == []
    assert list((repo / "streams").glob("oci-*")) == []
    cfsctl.assert_healthy(repo)


def test_an_interrupted_mountable_import_leaves_no_tag_and_the_next_one_removes_what_a_killed_one_left(
    cfsctl: Cfsctl, run: Run, repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = app_image(tmp_path / "layout", "app")
    pid = slow(tmp_path / "bin", "cfsctl")
    script = tmp_path / "bin/cfsctl"
    script.write_text(script.read_text().replace("echo", f'{cfsctl.program} "$@"\necho'))
    environment = {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "TMPDIR": str(tmp_path)}
    for number, left in ((signal.SIGTERM, 0), (signal.SIGKILL, 1)):
        pid.unlink(missing_ok=True)
        with start(repo, environment, "import", image.source, "--mountable") as process:
            until(pid.exists)
            assert len(list(repo.glob("streams/refs/oci/cfs-tags-mountable-*"))) == 1
            process.send_signal(number)
            process.wait(20)
        assert len(list(repo.glob("streams/refs/oci/cfs-tags-mountable-*"))) == left
    os.kill(int(pid.read_text()), signal.SIGKILL)
    run("import", image.source)
    assert cfsctl.tags(repo) == {"app": image.manifest_digest}
    cfsctl.assert_healthy(repo)


@pytest.mark.parametrize(
    ("program", "said"), [("skopeo", "connection refused"), ("cfsctl", "Error: it went wrong; 0: the cause")]
)
def test_the_error_of_another_program_is_shown_with_its_cause(
    skopeo: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, said: str
) -> None:
    words = ["import", "docker://127.0.0.1:1/" + "a" * 150, "app"]
    if program == "cfsctl":
        fake = tmp_path / "cfsctl"
        fake.write_text(
            "#!/bin/sh\nprintf 'Error: it went wrong\\n\\nCaused by:\\n    0: the cause\\n\\nStack backtrace:\\n'"
            "' 0: x\\n 1: y\\n' >&2\nexit 1\n"
        )
        fake.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
        words = ["import", app_image(tmp_path / "layout", "app").source, "--mountable"]

    message = json.loads(run(*words, "--json", status=1))["error"]["message"]
    assert message.endswith(said)


@pytest.mark.parametrize(
    ("text", "status"), [("64", 0), ("0.5", 0), ("100K", 0), ("2T", 0), ("1", 0), ("0", 2), ("x", 2), ("1X", 2), ("-1", 2)]
)
def test_the_longest_layer_is_a_size(run: Run, tmp_path: Path, text: str, status: int) -> None:
    run("import", app_image(tmp_path / "layout", "app").source, "--max-layer-size", text, status=status)


def test_mountable_has_cfsctl_make_the_image_and_leaves_one_tag(
    cfsctl: Cfsctl, run: Run, repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = app_image(tmp_path / "layout", "app")
    monkeypatch.setenv("PATH", str(tmp_path))
    run("import", image.source, "--mountable", status=1)
    monkeypatch.setenv("PATH", f"{cfsctl.program.parent}:/usr/bin:/bin")
    (repo / "bootc").mkdir()
    run("import", image.source, "--mountable")
    assert cfsctl.tags(repo) == {"app": image.manifest_digest}
    assert cfsctl.images_of(repo, "app")[0] is not None
    cfsctl.assert_healthy(repo)
    error = json.loads(run("import", static_image(tmp_path / "layout").source, "--mountable", "--json", status=1))["error"]
    assert error["code"] == "program-failed"
    assert "Error: " in error["message"]
    assert cfsctl.tags(repo) == {"app": image.manifest_digest}


def test_temporary_files_are_gone_afterwards(skopeo: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = app_image(tmp_path / "layout", "app")
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    skopeo_copy(skopeo, image.source, f"docker-archive:{tmp_path}/a.tar:app:1")
    subprocess.run(["gzip", tmp_path / "a.tar"], check=True)
    run("import", f"docker-archive:{tmp_path}/a.tar.gz")
    run("export", "docker.io/library/app:1", f"dir:{tmp_path}/dir")
    assert list(temporary.iterdir()) == []


def test_on_a_secure_repository_every_object_is_measured_before_it_has_a_name(repo: Path, tmp_path: Path) -> None:
    """The kernel here may have no fs-verity: what is looked at is what it is asked to do, and in which order."""
    measured: set[int] = set()
    adopted: list[str] = []
    adopt = fsops.adopt_object

    def enable(fd: int, number: int) -> None:
        assert number == 2
        assert fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
        inode = os.fstat(fd).st_ino
        writers = [name for name in os.listdir("/proc/self/fd") if _writes(name, inode)]
        assert writers == []
        measured.add(inode)

    def adopting(fd: int, dir_fd: int, path: str) -> bool:
        assert os.fstat(fd).st_ino in measured
        adopted.append(path)
        return adopt(fd, dir_fd, path)

    entries = [directory("usr"), file("usr/small", b"x" * 65), file("usr/large", random_bytes("large", 3 << 20))]
    image = build_image(tmp_path / "layout", "app", [Layer(entries)])
    secure = patch.object(WriteRepo, "is_secure", True)
    with secure, patch.object(fsops, "enable_verity", enable), patch.object(fsops, "adopt_object", adopting):
        done = import_image(repo, image.source)
    assert len(adopted) == done.objects == 7


def _writes(name: str, inode: int) -> bool:
    try:
        status = os.stat(f"/proc/self/fd/{name}")
        return status.st_ino == inode and bool(fcntl.fcntl(int(name), fcntl.F_GETFL) & os.O_ACCMODE)
    except OSError:
        return False


def test_listings_for_users_of_podman_and_crane(cfsctl: Cfsctl, run: Run, repo: Path, tmp_path: Path) -> None:
    image = build_image(
        tmp_path / "layout",
        "app",
        [Layer([directory("usr"), file("usr/f", bytes(2_000_000))])],
        config={"created": "2020-01-01T00:00:00.123456789Z", "config": {"Labels": {"a": "b"}}},
    )
    artifact = build_artifact(tmp_path / "layout", "sbom", [("text/plain", b"about")])
    run("import", image.source, "localhost:5000/org/app:1.2")
    run("import", image.source, "app")
    run("import", artifact.source, "sbom")
    size = len(image.layers[0].tar)
    lines = run("list", "--format", "podman").splitlines()
    assert lines[0].split() == ["REPOSITORY", "TAG", "IMAGE", "ID", "CREATED", "SIZE"]
    rows = [line.split("  ") for line in lines[1:]]
    config = image.config_digest.removeprefix("sha256:")[:12]
    assert [[cell.strip() for cell in row if cell.strip()][:3] for row in rows] == [
        ["app", "latest", config],
        ["localhost:5000/org/app", "1.2", config],
    ]
    assert all(line.endswith(" years ago  2.01 MB") for line in lines[1:])
    (shown,) = json.loads(run("list", "--format", "podman-json"))
    assert shown["Id"] == image.config_digest.removeprefix("sha256:")
    assert shown["Names"] == ["app", "localhost:5000/org/app:1.2"]
    assert shown["Size"] == size
    assert shown["Labels"] == {"a": "b"}
    assert shown["Created"] == 1577836800
    assert run("list", "--format", "crane", "--sort", "-name").splitlines() == ["sbom", "localhost:5000/org/app:1.2", "app"]
    assert run("list", "--format", "podman", "nothing*").splitlines() == ["REPOSITORY  TAG  IMAGE ID  CREATED  SIZE"]


def test_the_keys_of_podman_json_are_those_of_podman(
    podman: Path, run: Run, repo: Path, tmp_path: Path, podman_home: Path
) -> None:
    from support.peers import clean_environment

    image = app_image(tmp_path / "layout", "app")
    run("import", image.source)
    run("export", "app", f"oci-archive:{tmp_path}/app.tar:app")
    store = [str(podman), "--root", f"{tmp_path}/store", "--runroot", str(podman_home), "--storage-driver", "vfs"]
    environment = clean_environment(tmp_path)
    subprocess.run([*store, "load", "-q", "-i", f"{tmp_path}/app.tar"], check=True, env=environment, capture_output=True)
    said = subprocess.run([*store, "images", "--format", "json"], check=True, env=environment, capture_output=True).stdout
    (theirs,) = json.loads(said)
    (ours,) = json.loads(run("list", "--format", "podman-json"))
    optional = {"RepoTags", "Labels", "CreatedAt", "Names", "History", "IsManifestList", "Arch", "Os", "ReadOnly", "Dangling"}
    assert theirs.keys() - optional <= ours.keys()
    assert ours["Id"] == theirs["Id"]
    found: dict[str, Any] = theirs
    assert found["Digest"].startswith("sha256:")


# -- what a stopped import leaves --------------------------------------------------------------------------------------


@pytest.mark.parametrize("processes", [1, 2])
def test_a_full_disk_says_what_is_left_and_which_command_goes_on_and_which_clears(
    processes: int,
    run: Run,
    cfsctl: Cfsctl,
    repo: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from cfs_tags.apps.importing import layer

    monkeypatch.setattr(layer, "_SECOND_PROCESS", 0 if processes == 2 else 1 << 40)
    files = [file(f"usr/{name}", b"%07d" % name * 100) for name in range(40)]
    image = build_image(tmp_path / "layout", "app", [Layer([directory("usr"), *files], "none")])
    words = ["--repo", str(repo), "import", image.source, "app"]
    with fail_after(60):
        assert main(words) == 1
    said = capsys.readouterr().err
    stored = list((repo / "objects").glob("*/*"))
    size = sum(path.stat().st_size for path in stored)
    assert 5 < len(stored) < 40
    assert f"cannot store the image in {repo}: No space left on device\n" in said
    assert "hint: make room, and import it again: what is stored is used\n" in said
    assert f"warning: {len(stored)} objects ({size:,} bytes) are left in the repository, and nothing names them yet\n" in said
    assert f"hint: the same command again goes on with them, and 'cfs-tag --repo {repo} gc' removes them\n" in said
    assert "nothing was changed" not in said
    before = {path.stat().st_ino for path in stored}
    copy = copy_tree(repo, tmp_path / "copy")
    assert main(["--repo", str(copy), "gc"]) == 0
    assert list((copy / "objects").glob("*/*")) == []
    run("import", image.source, "app")
    assert before <= {path.stat().st_ino for path in (repo / "objects").glob("*/*")}
    cfsctl.assert_healthy(repo)


def test_content_that_an_import_leaves_is_reported_after_a_signal_and_a_wrong_digest(repo: Path, tmp_path: Path) -> None:
    files = [file(f"usr/{name}", b"%07d" % name * 700) for name in range(20_000)]
    image = build_image(tmp_path / "layout", "app", [Layer([directory("usr"), *files], "none")])
    command = [sys.executable, "-m", "cfs_tags", "--repo", str(repo), "import", image.source, "app"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        until(lambda: sum(1 for _ in (repo / "objects").glob("*/*")) > 50)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    count = sum(1 for _ in (repo / "objects").glob("*/*"))
    assert f"warning: {count:,} objects (" in said
    blob = image.layout / "blobs" / image.layers[0].digest.replace(":", "/")
    blob.write_bytes(blob.read_bytes()[:-1] + b"x")
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 6
    assert json.loads(done.stdout)["error"]["code"] == "digest-mismatch"
    assert "are left in the repository" in done.stderr


def test_an_import_that_left_no_content_reports_none(repo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    app_image(tmp_path / "layout", "app")
    assert main(["--repo", str(repo), "import", f"oci:{tmp_path}/layout:absent", "app"]) == 3
    assert "are left in the repository" not in capsys.readouterr().err


# -- names -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("quay.io/org/app:1", None),
        ("app:latest", None),
        ("docker://quay.io/org/app:1", None),
        ("quay.io/Org/app:1", "a repository is lower-case letters, digits and single separators"),
        ("quay.io//app:1", "a repository is lower-case letters, digits and single separators"),
        ("app:", "a reference is up to 128 letters, digits, dots, dashes and underscores"),
        ("my app", "a repository is lower-case letters, digits and single separators"),
        ("localhost:5000/app:1", "a repository has no port"),
        ("quay.io/org/app", "it has no tag, and they ask for quay.io/org/app:latest"),
    ],
)
@pytest.mark.parametrize("command", ["create", "import"])
def test_a_name_that_no_registry_client_can_pull_is_made_and_warned_of(
    command: str, name: str, reason: str | None, run: Run, repo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = app_image(tmp_path / "layout", "app")
    import_image(repo, image.source, "there:1")
    words = [command, name, "there:1"] if command == "create" else [command, image.source, name]
    for more in (["--dry-run"], []):
        assert main(["--repo", str(repo), *words, *more]) == 0
        said = capsys.readouterr().err
        assert said.count("warning") == (0 if reason is None else 1)
        assert reason is None or f"registry clients do not pull '{name}' as it stands: {reason}\n" in said
    assert main(["--repo", str(repo), *words]) == 0  # it is there now
    assert "warning" not in capsys.readouterr().err
    run("delete", name)
    warnings = json.loads(run(*words, "--json"))["warnings"]
    assert [(one["code"], one["facts"]) for one in warnings] == (
        [] if reason is None else [("name-not-pullable", {"name": name, "reason": reason})]
    )


def test_names_of_other_owners_are_not_warned_of(
    run: Run, repo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = app_image(tmp_path / "layout", "app")
    run("import", image.source, f"localhost/bootc-{image.manifest_digest}", "--owner", "bootc")
    assert "warning" not in capsys.readouterr().err
