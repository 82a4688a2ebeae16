"""One of the processes that work on one repository at the same time: ``python soak.py ROLE REPO SECONDS SEED CFSCTL LAYOUT``.

========  ==========================================================================================================
puller    pulls, tags and untags by the real cfsctl, makes images of directories; looks that what it tagged is whole
tagger    makes, moves and deletes tags by cfs-tag: shared, private, leases that run out at once, trash
gc        collects again and again, in slices of a few objects
stock gc  collects by the real cfsctl, which waits for the others for as long as they take
========  ==========================================================================================================

Prints what it did as JSON and ends with status 0; anything that is wrong ends it with a traceback.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from cfs_tags import Repository, gc
from cfs_tags.errors import IncompleteTarget, TagNotFound, TargetNotFound
from cfs_tags.tags import rows
from support import tagging
from support.garbage import content, object_of, parse_stream

DEADLINE = 60.0
"""Seconds that one step may take, locks included."""
IMAGES = 6


class Role:
    """What all of them have: the repository, the time, what was done and how long the longest step took."""

    def __init__(self, repo: Path, seconds: float, seed: int, cfsctl: str, layout: Path) -> None:
        self.repo = repo
        self.end = time.monotonic() + seconds
        self.random = random.Random(seed)
        self.done: Counter[str] = Counter()
        self.longest = 0.0
        self.seed = seed
        self._cfsctl = cfsctl
        self.layout = layout

    def run(self) -> None:
        """Work until the time is over."""
        while time.monotonic() < self.end:
            started = time.monotonic()
            waits = self.step() or 1
            self.longest = max(self.longest, (time.monotonic() - started) / waits)

    def step(self) -> int | None:
        """Do one thing; returns how often it waited for a lock, where that is not once."""
        raise NotImplementedError

    def cfsctl(self, *words: str, timeout: float = DEADLINE) -> None:
        """Run the real one."""
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.layout.parent), "TMPDIR": str(self.layout.parent)}
        command = [self._cfsctl, "--repo", str(self.repo), *words]
        done = subprocess.run(command, capture_output=True, timeout=timeout, env=environment, check=False)
        assert done.returncode == 0, (command, done.stdout, done.stderr)


class Puller(Role):
    """See above."""

    def __init__(self, *words: object) -> None:
        super().__init__(*words)  # type: ignore[arg-type]
        self.tags: dict[str, str] = {}

    def step(self) -> None:
        """Pull, tag again, make an image, or look at something and let it go."""
        number = self.random.randrange(IMAGES)
        name = f"pulled-{self.seed}-{number}"
        action = self.random.choice(["pull", "pull", "tag", "image", "drop", "drop", "drop image"])
        if action == "pull" or not self.tags:
            self.cfsctl("oci", "pull", f"oci:{self.layout}:app-{number}", name)
            self.tags[name] = f"app-{number}"
        elif action == "tag":
            held = self.random.choice(sorted(self.tags))
            link = os.readlink(self.repo / "streams/refs/oci" / held)
            name = f"{name}-again"
            self.cfsctl("oci", "tag", link.rpartition("oci-manifest-")[2], name)
            self.tags[name] = self.tags[held]
        elif action == "image":
            self.cfsctl("create-image", str(self.layout.parent / f"tree-{number % 2}"), f"soak/{self.seed}/{number}")
        elif action == "drop image":
            self.drop(self.repo / f"images/refs/soak/{self.seed}/{number}")
        else:
            name = self.random.choice(sorted(self.tags))
            self.look(f"streams/refs/oci/{name}")
            self.cfsctl("oci", "untag", name)
            del self.tags[name]
        self.done[action] += 1

    def drop(self, ref: Path) -> None:
        """Remove an image ref, as a user does who knows no command for it."""
        if ref.is_symlink():
            for path in subprocess.check_output(
                [self._cfsctl, "--repo", str(self.repo), "image-objects", os.path.basename(os.readlink(ref))], text=True
            ).split():
                assert content(self.repo, path.rpartition(":")[2]).exists(), f"{ref}: {path} is lost"
            ref.unlink()

    def look(self, ref: str) -> None:
        """Everything that a tag needs is there: it had its tag all the time."""
        pending = [object_of(self.repo, ref)]
        seen = set()
        while pending:
            current = pending.pop()
            assert content(self.repo, current).exists(), f"{ref}: stream {current} is lost"
            if current in seen:
                continue
            seen.add(current)
            stream = parse_stream(content(self.repo, current).read_bytes(), len(current) // 2)
            for one in (*stream.objects, *stream.named.values()):
                assert content(self.repo, one).exists(), f"{ref}: object {one} is lost"
            pending += [one for key, one in stream.named.items() if not key.startswith("composefs.image")]


class Tagger(Role):
    """See above."""

    def step(self) -> None:
        """One change of tags; others may have been faster."""
        name = f"ours-{self.seed}-{self.random.randrange(5)}"
        with Repository.open(self.repo, write=True) as repo:
            action = self.random.choice(["create", "create", "lease", "delete", "trash"])
            try:
                if action in ("create", "lease"):
                    found = [row.digest for row in rows.list_tags(repo) if row.digest]
                    if not found:
                        return
                    target = f"@{self.random.choice(found)}"
                    if action == "lease":
                        tagging.create(repo, f"lease-{name}", target, expires=rows.expiry(1), force=True)
                    else:
                        tagging.create(repo, name, target, force=True, home=self.random.choice(["shared", "private"]))
                elif action == "delete":
                    tagging.delete(repo, [name])
                else:
                    tagging.delete(repo, [name], expires=rows.expiry(1))
            except (TagNotFound, TargetNotFound, IncompleteTarget):
                action = "too late"
        self.done[action] += 1
        time.sleep(self.random.uniform(0, 0.02))


class Collector(Role):
    """See above."""

    def step(self) -> int:
        """Collect, in very small slices; none of its waits may be longer than the deadline."""
        pace = gc.Pace(
            slice=self.random.choice([0.001, 0.005, 0.02]),
            threads=self.random.choice([1, 2, 8]),
            batch=self.random.choice([1, 2, 5]),
        )
        options = gc.GcOptions(
            free_bytes=self.random.choice([None, None, None, 20_000]), prune_referrers=self.random.random() < 0.3
        )
        with Repository.open(self.repo, write=True) as repo:
            made = gc.collect(repo, options, timeout=DEADLINE, pace=pace)
        self.done["collections"] += 1
        self.done["slices"] += made.slices
        self.done["objects"] += made.swept.objects
        self.done["links"] += made.swept.streams + made.swept.images
        time.sleep(self.random.uniform(0, 0.05))
        return made.slices + 2


class StockCollector(Role):
    """See above."""

    def run(self) -> None:
        """Work until the time is over.  How long a step takes says nothing: it is waiting for all the others at once."""
        while (left := self.end - time.monotonic()) > 0:
            # one that is killed while it deletes leaves names without objects: when the others are done it gets its lock
            self.cfsctl("gc", timeout=left + DEADLINE)
            self.done["stock collections"] += 1
            time.sleep(self.random.uniform(4, 8))  # something is left for ours


def main() -> None:
    """Play the role."""
    role, repo, seconds, seed, cfsctl, layout = sys.argv[1:]
    made = {"puller": Puller, "tagger": Tagger, "gc": Collector, "stock gc": StockCollector}[role](
        Path(repo), float(seconds), int(seed), cfsctl, Path(layout)
    )
    made.run()
    print(json.dumps({"done": made.done, "longest": made.longest, "tags": getattr(made, "tags", {})}))


if __name__ == "__main__":
    main()
