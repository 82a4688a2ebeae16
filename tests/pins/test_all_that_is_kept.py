"""After any policy and stock collections nothing pinned, leased, bound, in the trash or deployed has lost an object."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from cfs_tags.policy import files
from cli.conftest import Run
from pins.conftest import NAMES, Pinnable, contents, ids_of, object_path
from support.garbage import object_of, parse_stream
from support.images import Layer, app_image, base_layer, pull_image
from support.peers import Cfsctl
from support.trees import copy_tree

SEED = int(os.environ.get("CFS_TAGS_SEED", "1"))
ROUNDS = {"short": 1, "ci": 4, "long": 20}[os.environ.get("CFS_TAGS_PROOF", "short")]
KEPT = tuple(f"{tree}/refs/cfs-tags" for tree in ("streams", "images"))
IMAGES = 12


@pytest.fixture(autouse=True)
def _no_policy_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_SYSTEM", str(tmp_path / "etc.toml"))


def needed(repo: Path, refs: list[Path], images: list[str]) -> set[str]:
    """The objects that refs, and images by their ids, lead to, read without the code that is tested: splitstreams by their
    own reader of these tests, EROFS images by the ids that stand in them."""
    known = {bytes.fromhex(one): one for one in contents(repo)}
    found: set[str] = set()
    pending = [(object_of(repo, str(ref.relative_to(repo))), ref.is_relative_to(repo / "images")) for ref in refs]
    pending += [(object_of(repo, f"images/{image}"), True) for image in images]
    while pending:
        one, is_image = pending.pop()
        if one in found:
            continue
        found.add(one)
        data = object_path(repo, one).read_bytes()
        if is_image:
            found |= {text for raw, text in known.items() if raw in data}
            continue
        stream = parse_stream(data, len(one) // 2)
        found |= stream.objects
        pending += [(target, key.startswith("composefs")) for key, target in stream.named.items()]
    return found


def links(*tops: Path) -> list[Path]:
    return [path for top in tops for path in top.rglob("*") if path.is_symlink()]


class Story:
    """What is done to a host before its policy is applied, drawn from a seed."""

    def __init__(self, host: Pinnable, call: Run, cfsctl: Cfsctl, work: Path, seed: int) -> None:
        self.host, self.repo, self.call, self.cfsctl, self.work = host, host.repo, call, cfsctl, work
        self.draw = random.Random(seed)
        self.done: list[str] = []

    def run(self, *words: str | Path, status: int | None = 0) -> None:
        self.done.append(" ".join(map(str, words)))
        said = self.call("--repo", self.repo, *words)
        assert status is None or said.status == status, (said, self.done)

    def on_host(self, command: str, *words: str) -> None:
        self.done.append(" ".join((command, *words)))
        self.host.on_host(command, *words)

    def fill(self) -> list[str]:
        """App images that share layers, of many days, each with a tag of cfsctl's."""
        shared = [base_layer("base"), base_layer("other")]
        names = []
        for number in range(IMAGES):
            created = f"2026-{self.draw.randint(1, 6):02}-{self.draw.randint(1, 28):02}T12:00:00Z"
            layers: list[Layer] = shared[: self.draw.randint(1, 2)]
            image = app_image(self.work / "layout", f"app{number}", layers, config={"created": created})
            names.append(f"quay.io/{self.draw.choice('xy')}/app:{number}")
            pull_image(self.cfsctl, self.repo, image, names[-1])
        return names

    def tell(self, names: list[str]) -> None:
        """Pins, leases, bound refs and deletions; the last image goes for good, so that there is something to collect."""
        bound = self.repo / "streams/refs/cfs-tags/bound" / self.host.id
        for name in names[:-1]:
            what = self.draw.choice(["pin", "pin for a while", "lease", "bind", "trash", "private", "nothing", "nothing"])
            if what.startswith("pin"):
                self.run("pin", name, *(() if what == "pin" else ("--until", "9d")))
            elif what == "lease":
                self.run("create", f"lent/{name}", name, "--expires", "9d")
            elif what == "private":
                self.run("create", f"own/{name}", name, "--private")
            elif what == "bind":
                bound.mkdir(parents=True, exist_ok=True)
                component = name.replace("/", "%2F")
                target = os.readlink(self.repo / "streams/refs/oci" / component).rpartition("/")[2]
                (bound / component).symlink_to(f"../../../../{target}")
            if what == "trash" or (what not in ("nothing", "private") and self.draw.random() < 0.6):
                self.run("delete", name, *(("--keep-for", "9d") if what == "trash" else ()))
        self.run("delete", names[-1])

    def rules(self) -> str:
        """A policy that drops much."""
        keep = self.draw.choice(["keep-last = 1", "keep-monthly = 2", 'keep-within = "20d"', 'keep-tags = "nothing"'])
        tags, group = self.draw.choice(["*", "quay.io/*", "quay.io/x/*"]), self.draw.choice(["rule", "repository"])
        trash = self.draw.choice(["", '[trash]\nkeep-for = "9d"\n'])
        return f'{trash}[[rule]]\ntags = "{tags}"\n{keep}\ngroup-by = "{group}"\n'


@pytest.fixture(params=[(name, SEED + number) for name in NAMES for number in range(ROUNDS)], ids=str)
def story(request: pytest.FixtureRequest, recorded: Callable[[str], Path], call: Run, cfsctl: Cfsctl, tmp_path: Path) -> Story:
    name, seed = request.param
    root = recorded(name)
    there = [one for one in ids_of(name) if (root / "composefs/images" / one).is_symlink()]
    draw = random.Random(f"{name} {seed}")
    return Story(Pinnable(root, draw.choice(there), call), call, cfsctl, tmp_path, draw.randrange(1 << 30))


def test_no_policy_and_no_collection_takes_an_object_of_what_is_kept(story: Story, tmp_path: Path, cfsctl: Cfsctl) -> None:
    repo, host = story.repo, story.host
    names = story.fill()
    migrated = story.draw.random() < 0.7
    if migrated:
        story.on_host("migrate")
    if story.draw.random() < 0.7:
        story.on_host("pin", host.id, "--name", "deployment")
        if story.draw.random() < 0.5:
            host.delete()
    story.tell(names)
    (tmp_path / "policy.toml").write_text(story.rules())
    before = contents(repo)
    deployed = [one.name for one in (host.root / "state/deploy").iterdir() if re.fullmatch("[0-9a-f]{64,128}", one.name)]
    if not migrated:  # what has no tag of bootc's cfsctl collects from such a host whatever a policy drops
        alone = copy_tree(repo, tmp_path / "alone")
        for _ in range(2):
            cfsctl(alone, "gc")
        deployed = [one for one in deployed if (alone / "images" / one).is_symlink()]

    story.run("policy", "apply", "--file", tmp_path / "policy.toml", "--allow-empty-group")
    kept = links(*(repo / top for top in KEPT))  # the policy has put more into the trash
    whole = needed(repo, kept, [one for one in deployed if (repo / "images" / one).is_symlink()])
    for _ in range(2):
        cfsctl(repo, "gc")

    after = contents(repo)
    assert {one: after.get(one) for one in whole} == {one: before[one] for one in whole}, story.done
    assert before.keys() - after.keys(), "something was to be collected"
    assert links(*(repo / top for top in KEPT)) == kept
    for row in story.call("--repo", repo, "trash", "--json").result:
        story.run("restore", row["name"].removeprefix("@trash/"))
    for pin in story.call("--repo", repo, "pins", "--json").result:
        story.run("export", f"@pin/{pin['name']}", f"oci:{tmp_path}/exported:{pin['name'].replace('/', '-').replace(':', '-')}")
