"""What is done to every recorded host: one function for each golden file."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from golden.recorder import Recorder
from support.images import app_image, build_index

__all__ = ["ONLY", "STORIES", "Facts"]

SHARED = "composefs/streams/refs/oci"
NEW = "golden/one:1"
NONE = "sha256:" + "0" * 64


class Facts(NamedTuple):
    """What a story has to know of its host: the booted deployment, all of them, tags with their digests, boot entries.

    ``full`` says that every turn of the story is told.  It is for one host; the others are spared what their images and
    deployments make no difference to.
    """

    full: bool
    booted: str
    deployments: tuple[str, ...]
    tags: dict[str, str]
    entries: tuple[str, ...]

    @classmethod
    def of(cls, root: Path, booted: str, full: bool) -> Facts:
        """Read from the host itself, without ``cfs-tag``."""
        tags = {
            name.replace("%2F", "/").replace("%25", "%"): os.readlink(root / SHARED / name).rpartition("oci-manifest-")[2]
            for name in sorted(os.listdir(root / SHARED))
        }
        entries = sorted(path.relative_to(root).as_posix() for path in (root / "boot/loader").glob("entries*/*.conf"))
        texts = [(root / entry).read_text() for entry in entries]
        named = {text.partition("composefs=")[2].lstrip("?").split()[0] for text in texts}
        return cls(full, booted, tuple(sorted(named | set(os.listdir(root / "state/deploy")))), tags, tuple(entries))

    @property
    def others(self) -> list[str]:
        """Deployments that are not booted."""
        return [one for one in self.deployments if one != self.booted]

    @property
    def app(self) -> str:
        """A tag to work with: an app's where there is one."""
        return max(self.tags, key=lambda name: (not name.startswith("localhost/"), name))

    @property
    def second(self) -> str:
        """Another tag, with another digest where there is one."""
        rest = [name for name, digest in self.tags.items() if digest != self.tags[self.app]]
        return rest[0] if rest else self.app


Story = Callable[[Recorder, Facts], None]


def reading(record: Recorder, facts: Facts) -> None:
    """Commands that write nothing."""
    _listings(record, facts)
    record.title("One name")
    for tag, digest in facts.tags.items():
        record.repo("show", tag)
        record.repo("resolve", f"@{digest[:20]}", "--verity")
    for raw in ("manifest", "config"):
        record.repo("show", f"@{facts.tags[facts.app]}", "--raw", raw, json=False)
    record.repo("resolve", facts.app)
    if not facts.full:
        return
    for absent in ("absent", f"@{NONE}", "@deployment/00", "@trash/absent", f"{facts.app}@{{0}}", "@sha256:12"):
        record.repo("show", absent)
        record.repo("resolve", absent)
    record.title("History of a repository that cfs-tag never wrote to")
    record.repo("log")
    record.repo("log", facts.app, "--limit", "3")
    record.repo("trash")


def _listings(record: Recorder, facts: Facts) -> None:
    record.title("Listings")
    record.repo("list")
    record.repo("list", "--long", "--all")
    record.repo("serve", "--list", "--allow", "*")
    if not facts.full:
        return
    record.repo("list", "quay.io/*", "localhost/*", "--sort", "-created")
    record.repo("list", "--owner", "bootc", "--format", "{name} {digest} {architecture} {layer_count}", json=False)
    record.repo("list", "--jsonl", "--long", json=False)
    record.repo("list", "--points-at", facts.app)
    for form in ("podman", "podman-json", "crane"):
        record.repo("list", "--format", form, json=False)
    record.repo("serve", "--list")


def space(record: Recorder, facts: Facts) -> None:
    """What takes space and why; checks; collections that are only shown."""
    record.title("Who takes how much")
    record.on("df", "--without", facts.app, "--without", facts.second)
    record.title("Why something is kept")
    for one in (*facts.tags, *facts.tags.values(), *facts.deployments):
        record.repo("why", one)
    record.repo("why", facts.second, "--path", "/usr/bin/init")
    record.repo("why", facts.second, "--path", "/absent")
    record.repo("why", facts.app, "--jsonl", json=False)
    record.title("Checks")
    record.repo("fsck", "--content")
    record.repo("fsck", "--repair", "--dry-run")
    record.title("What a collection would do")
    record.on("gc", "--dry-run")
    record.repo("gc", "--dry-run", "--no-sysroot")
    if not facts.full:
        return
    record.repo("df")
    record.repo("why", NONE)
    record.repo("fsck")
    record.on("gc", "--dry-run", "--image-only", "--prune-referrers", "--free-bytes", "1K")
    record.repo("gc", "--dry-run", "--no-sysroot", "--root", "absent")


def deployments(record: Recorder, facts: Facts) -> None:
    """Deployments as bootc left them: states, look-ups, what writing commands would do."""
    record.on("deployments")
    record.run("--sysroot", "host", "deployments", "--run", "none", "--booted", "none", "--esp", "none", "--boot", "none")
    for name in ("booted", "staged", "rollback", *(f"host/{entry}" for entry in facts.entries), *facts.deployments):
        record.on("lookup", name)
    if facts.full:
        for name in (*(Path(entry).name for entry in facts.entries), facts.booted[:8], "00000000", "absent.conf"):
            record.on("lookup", name)
    for raw in ("manifest", "config"):
        record.on("lookup", "booted", "--raw", raw, json=False)
    record.title("What writing commands would do")
    record.on("migrate", "--dry-run", "--write-origin")
    record.on("retire", "--dry-run")
    record.on("bind", "--dry-run")
    if facts.full:
        record.on("migrate", "--dry-run")
        record.on("migrate", "--undo", "--dry-run")
        record.on("retire", "--dry-run", facts.booted[:10])
        record.on("bind", "booted", "--dry-run")
    record.run("--sysroot", "host", "create", "--deployment", facts.booted, "--dry-run")


def tags(record: Recorder, facts: Facts) -> None:
    """A tag is made, moved, renamed, deleted and brought back; many at once; every refusal on the way."""
    first, second = facts.tags[facts.app], facts.tags[facts.second]
    if not facts.full:
        _in_short(record, facts)
        return
    _made_and_moved(record, facts, first, second)
    record.title("Renamed")
    record.repo("rename", NEW, "golden/two:1", "--reason", "another name")
    record.repo("rename", NEW, "golden/three:1")
    record.repo("create", NEW, f"@{first}")
    record.repo("rename", "golden/two:1", NEW)
    record.repo("rename", "golden/two:1", NEW, "--force")
    record.title("Deleted and brought back")
    record.repo("delete", NEW, "--dry-run")
    record.repo("delete", NEW, "--reason", "not needed")
    record.repo("delete", NEW)
    record.repo("delete", NEW, "--missing-ok")
    record.repo("restore", NEW, "--dry-run")
    record.repo("restore", NEW)
    record.repo("restore", f"{NEW}@{{1}}")
    record.repo("log")
    record.repo("delete", NEW, "golden/lent:1", "--keep-for", "7d")
    record.repo("trash")
    record.repo("show", f"@trash/{NEW}")
    record.repo("list", "--all")
    record.repo("restore", NEW)
    record.repo("restore", "absent")
    record.title("What bootc owns")
    bootc = next(name for name in facts.tags if name.startswith("localhost/"))
    record.repo("delete", bootc)
    record.repo("delete", bootc, "--owner", "bootc")
    record.repo("restore", bootc, "--owner", "bootc")
    _many_at_once(record, facts, first, second)
    record.title("Afterwards")
    record.repo("log", NEW)
    record.repo("log", NEW, "--jsonl", json=False)
    record.repo("resolve", f"{NEW}@{{1}}")
    record.repo("list", "--long", "--all")
    record.repo("df")
    record.repo("why", first)
    record.repo("fsck")


def _in_short(record: Recorder, facts: Facts) -> None:
    record.repo("create", NEW, facts.app, "--reason", "passed its tests")
    record.repo("create", NEW, facts.second, "--force")
    record.repo("rename", NEW, "golden/two:1")
    record.repo("delete", "golden/two:1", "--keep-for", "7d")
    record.repo("trash")
    record.repo("restore", "golden/two:1")
    record.repo("update", "--stdin", input=f"create golden/a {facts.app}\ndelete golden/two:1\n")
    record.repo("log", "golden/two:1")


def _made_and_moved(record: Recorder, facts: Facts, first: str, second: str) -> None:
    record.title("Made and moved")
    record.repo("create", NEW, facts.app, "--dry-run")
    record.repo("create", NEW, facts.app, "--reason", "passed its tests")
    record.repo("create", NEW, f"@{first[:19]}")
    record.repo("create", NEW, facts.second)
    record.repo("create", NEW, facts.second, "--expect", NONE)
    record.repo("create", NEW, facts.second, "--expect", first)
    record.repo("create", NEW, facts.app, "--force")
    record.repo("create", NEW, f"@{NONE}", "--force")
    record.repo("create", "golden/private:1", facts.app, "--private")
    record.repo("create", "golden/private:1", facts.app, "--shared")
    record.repo("create", "golden/shared:1", facts.second, "--shared", "--expect", "absent")
    record.repo("create", "golden/lent:1", facts.second, "--expires", "7d")
    record.repo("show", NEW)


def _many_at_once(record: Recorder, facts: Facts, first: str, second: str) -> None:
    record.title("Many at once: all or nothing")
    lines = f"create golden/a {facts.app}\ncreate golden/b @{second}\nmove {NEW} {facts.second}\n"
    record.repo("update", "--stdin", "--dry-run", input=lines)
    record.repo("update", "--stdin", input=lines)
    record.repo("update", "--stdin", input=f"delete golden/a {NONE}\ndelete golden/b\n")
    record.repo("update", "--stdin", input=f"# gone\ndelete golden/a {first}\nverify golden/b {second}\n")
    record.repo("update", "--stdin", input="remove golden/b\n")
    objects = [
        {"verb": "delete", "name": "golden/b"},
        {"verb": "create", "name": "golden/c", "target": facts.app, "home": "private"},
    ]
    record.repo("update", "--json-lines", input="".join(json.dumps(one) + "\n" for one in objects))


def migrating(record: Recorder, facts: Facts) -> None:
    """Deployments get refs, in all ways there are, and lose them again."""
    record.on("migrate", "--reason", "refs decide from now on")
    record.on("deployments")
    record.on("lookup", facts.others[0])
    record.on("migrate", "--undo")
    record.on("migrate", "--write-origin")
    record.on("lookup", facts.others[0])
    record.on("bind")
    if not facts.full:
        return
    record.on("migrate")
    record.repo("list")
    record.on("df")
    record.on("migrate", "--undo", "--force")
    record.on("migrate", "--undo")
    digest = next(iter(facts.tags.values()))
    record.on("migrate", "--manifest", f"{facts.others[0][:12]}={digest}")
    record.on("migrate", "--manifest", "00=1")
    for one in facts.deployments:
        record.run("--sysroot", "host", "create", "--deployment", one, "--bind")
        record.run("--sysroot", "host", "create", "--deployment", one, f"@{digest}")
    record.run("--sysroot", "host", "create", "--deployment", "0" * 128)
    record.on("bind", "booted")
    record.repo("log")
    record.repo("fsck")


def retiring(record: Recorder, facts: Facts) -> None:
    """Deployments are removed, their refs retired, their content collected."""
    gone = facts.others[-1]
    record.on("retire")
    record.change("The state directory of a deployment is removed", lambda home: _without_state(home / "host", gone))
    record.on("retire", "--grace", "0", "--dry-run")
    if facts.full:
        record.on("retire", "--grace", "0")
    record.on("deployments")
    record.change("Its boot entries go, too", lambda home: _without_entries(home / "host", gone))
    if facts.full:
        record.on("retire", "--grace", "0", "--dry-run")
        record.on("retire", facts.booted[:10], "--grace", "0")
        record.on("gc", "--dry-run")
    record.on("retire", "--grace", "0")
    _of_a_host_that_is_not_running(record, "retire", "--grace", "0")
    record.change("And bootc's tags", lambda home: _without_tags(home / "host"))
    record.on("gc", "--dry-run")
    _of_a_host_that_is_not_running(record, "gc")
    record.repo("why", gone)
    record.on("deployments")
    record.repo("log")
    record.repo("fsck", "--content")


def _of_a_host_that_is_not_running(record: Recorder, command: str, *words: str) -> None:
    record.run("--sysroot", "host", command, "--run", "none", "--booted", "none", "--esp", "none", *words)


def _without_state(host: Path, deployment: str) -> None:
    shutil.rmtree(host / "state/deploy" / deployment, ignore_errors=True)


def _without_entries(host: Path, deployment: str) -> None:
    for path in (host / "boot/loader").glob("entries*/*.conf"):
        if deployment in path.read_text():
            path.unlink()
    staged = host / "run/composefs/staged-deployment"
    if staged.exists() and deployment in staged.read_text():
        staged.unlink()
    shutil.rmtree(host / f"boot/bootc_composefs-{deployment}", ignore_errors=True)


def _without_tags(host: Path) -> None:
    for path in (host / SHARED).glob("localhost%2Fbootc-*"):
        path.unlink()


def collecting(record: Recorder, facts: Facts) -> None:
    """Collections: nothing to collect, a tag less, everything but roots, leases and trash, all tags gone."""
    record.on("gc")
    record.repo("create", "golden/lent:1", facts.app, "--expires", "7d")
    record.repo("create", "golden/kept:1", facts.second, "--private")
    record.repo("delete", "golden/kept:1", "--keep-for", "7d")
    for name in facts.tags:
        record.repo("delete", name, "--owner", "bootc")
    record.repo("restore", "golden/kept:1")
    record.repo("delete", "golden/lent:1", "golden/kept:1")
    stream = f"oci-manifest-{facts.tags[facts.app]}"
    if facts.full:
        record.on("gc", "--dry-run", "--root", stream)
        record.on("gc", "--free-bytes", "10K")
        record.on("gc", "--grace", "1000d")
    record.on("gc")
    record.repo("restore", facts.app, "--owner", "bootc")
    record.repo("why", facts.tags[facts.app])
    if facts.full:
        record.on("df")
        record.repo("fsck", "--content")
        record.on("deployments")
    record.title("Without a look at deployments")
    record.repo("gc", "--no-sysroot")
    record.repo("list", "--all")


def images(record: Recorder, facts: Facts) -> None:
    """An image comes in, is served and goes out; the same again; an index with two platforms."""

    def layouts(home: Path) -> None:
        app = app_image(home / "layout", "app")
        arm = app_image(home / "layout", "arm", config={"architecture": "arm64"})
        app_image(home / "layout", "other")
        build_index(home / "layout", "both", {"amd64": app, "arm64": arm})
        bad = home / "bad"
        shutil.copytree(home / "layout", bad)
        largest = max((bad / "blobs/sha256").iterdir(), key=lambda path: path.stat().st_size)
        largest.write_bytes(largest.read_bytes()[:-1] + b"?")

    record.change("A layout with two images, and one with a damaged layer", layouts)
    record.repo("import", "oci:layout:app", "golden/app:1", "--dry-run")
    record.repo("import", "oci:layout:app", "golden/app:1", "--reason", "a new app")
    if facts.full:
        _other_imports(record)
    record.repo("serve", "--list")
    record.repo("export", "golden/app:1", "oci:out:one")
    record.repo("export", facts.app, "oci:out:one")
    if facts.full:
        record.repo("export", facts.app, "oci:out:one")
        record.repo("export", facts.app, "oci-archive:out.tar")
        record.repo("export", facts.app, "oci-archive:out.tar")
        record.repo("export", "absent", "oci:out:two")
    record.repo("delete", "golden/app:1")
    record.on("gc")
    record.repo("fsck", "--content")


def _other_imports(record: Recorder) -> None:
    record.repo("import", "oci:layout:app", "golden/app:1")
    record.repo("import", "oci:layout:other", "golden/app:1")
    record.repo("import", "oci:layout:other", "golden/app:1", "--force")
    record.repo("import", "oci:layout:both", "golden/both:1", "--platform", "linux/arm64")
    record.repo("import", "oci:layout:both", "golden/all:1", "--all-platforms", "--keep-index")
    record.repo("import", "oci:layout:app", "--private")
    record.repo("import", "oci:layout:absent")
    record.repo("import", "oci:layout")
    record.repo("import", "oci:nowhere:app")
    record.repo("import", "oci:bad:app", "golden/bad:1")
    record.repo("import", "oci:bad:other", "golden/bad:2")
    record.repo("show", "golden/app:1")
    record.repo("show", "golden/all:1")
    record.repo("list", "--all", "--long")
    record.repo("df")


def damage(record: Recorder, facts: Facts) -> None:
    """What is said of damage, what is refused because of it, and what is repaired."""
    _dangling(record, facts)
    stream = f"oci-manifest-{facts.tags[facts.app]}"
    record.change(
        "The link of a manifest's stream is removed", lambda home: (home / "host/composefs/streams" / stream).unlink()
    )
    _looked_at(record, facts)
    record.repo("fsck", "--repair", "--owner", "bootc")
    record.repo("restore", facts.app, "--owner", "bootc")
    record.change("The largest object is cut to 100 bytes", lambda home: os.truncate(_largest(home / "host/composefs"), 100))
    record.repo("fsck", "--content")
    _looked_at(record, facts)
    record.change("The largest object is removed", lambda home: _largest(home / "host/composefs").unlink())
    _looked_at(record, facts)
    record.change("There is no meta.json", lambda home: (home / "host/composefs/meta.json").unlink())
    record.repo("list")
    record.repo("fsck")
    record.change("There is no objects directory", lambda home: shutil.rmtree(home / "host/composefs/objects"))
    _looked_at(record, facts)


def _dangling(record: Recorder, facts: Facts) -> None:
    def make(home: Path) -> None:
        os.symlink("../../oci-manifest-" + NONE, home / "host" / SHARED / "dangling:1")
        os.symlink("/etc/passwd", home / "host" / SHARED / "outside:1")
        (home / "host" / SHARED / "file:1").write_text("no link")

    record.change("Refs that lead nowhere", make)
    record.repo("list", "--all")
    _looked_at(record, facts)
    record.repo("fsck", "--repair", "--dry-run")
    record.repo("fsck", "--repair")
    record.repo("list", "--all")
    record.repo("restore", f"{SHARED.removeprefix('composefs/')}/dangling:1")
    record.repo("delete", "dangling:1", "outside:1", "file:1")
    record.repo("delete", "dangling:1")


def _looked_at(record: Recorder, facts: Facts) -> None:
    record.repo("fsck")
    record.repo("show", facts.app)
    record.repo("create", NEW, facts.app, "--dry-run")
    record.repo("export", facts.app, "oci:out:one")
    record.repo("serve", "--list")
    record.on("deployments")
    record.on("migrate", "--dry-run")
    record.on("gc", "--dry-run")
    record.on("gc", "--dry-run", "--keep-broken")
    record.on("df")


def _largest(repo: Path) -> Path:
    return max((repo / "objects").glob("*/*"), key=lambda path: (path.stat().st_size, path.name))


def usage(record: Recorder, facts: Facts) -> None:
    """Wrong usage, and what the program says of itself."""
    record.run("--version", json=False)
    record.run(json=False)
    for words in _wrong(facts):
        record.repo(*words)
    record.run("--repo", "host/composefs", "--sysroot", "host", "list")
    record.run("--repo", "nowhere", "list")
    record.run("--repo", "host/boot", "list")
    record.run("--sysroot", "nowhere", "deployments")
    record.run("list", "--repo", "host/composefs")
    record.run("--json", "list", json=False)
    record.run("lst", json=False)
    record.run("--unknown", json=False)
    record.run("--sysroot", "host", "deployments", "--booted", "00", "--run", "host/run", "--esp", "none")
    record.run("--sysroot", "host", "deployments", "--boot", "nowhere", "--run", "nowhere", "--esp", "nowhere")


def _wrong(facts: Facts) -> Iterator[tuple[str, ...]]:
    yield from (
        ("create",),
        ("create", NEW),
        ("create", "", facts.app),
        ("create", "@x", facts.app),
        ("create", "-x", facts.app),
    )
    yield from (
        ("create", "x" * 300, facts.app),
        ("create", NEW, facts.app, "--expires", "soon"),
        ("create", "a\nb", facts.app),
    )
    yield from (("create", NEW, facts.app, "--expect", "this"), ("create", NEW, facts.app, "--shared", "--private"))
    yield from (("create", NEW, facts.app, "--owner", "nobody"), ("create", NEW, facts.app, "--lock-timeout", "-1"))
    yield from (("create", "--deployment", "xyz"), ("create", NEW, facts.app, "more"))
    yield from (("delete",), ("delete", "--keep-for", "1", NEW), ("rename", NEW), ("rename", NEW, NEW), ("resolve",))
    yield from (("update",), ("update", "--stdin", "--json-lines"), ("update", "--json-lines"))
    yield from (
        ("list", "--sort", "size"),
        ("list", "--format", "{nothing}"),
        ("list", "--owner", "me"),
        ("show", "--raw", "layer", "x"),
    )
    yield from (("log", "--limit", "0"), ("restore",), ("restore", f"{facts.app}@{{99}}"), ("trash", "more"))
    yield from (("gc", "--free-bytes", "much"), ("gc", "--grace", "-1"), ("gc", "--no-sysroot", "--image-only"))
    yield from (("why",), ("why", "00"), ("df", "--without", "absent"), ("fsck", "--owner", "bootc"), ("fsck", "--dry-run"))
    yield from (("import",), ("import", "oci:"), ("export", facts.app))
    yield from (
        ("export", facts.app, "oci:out:x", "--compress", "xz"),
        ("serve", "--listen", "nowhere"),
        ("lookup",),
        ("bind", "00"),
    )
    yield from (("migrate", "--manifest", "x"), ("migrate", "--force"), ("retire", "--grace", "x"), ("retire", "xyz"))


STORIES: dict[str, Story] = {
    story.__name__: story
    for story in (reading, space, deployments, tags, migrating, retiring, collecting, images, damage, usage)
}
"""Name of the golden file to what is done for it."""

ONLY = {"damage": ("example", "life-rolled-back"), "usage": ("example",)}
"""Stories that are told of these hosts alone."""
