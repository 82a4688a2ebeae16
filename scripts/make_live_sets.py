"""Write ``kit/live_sets.json``: for each recorded host the refs of its deployments, and what they keep.

    python scripts/make_live_sets.py > kit/live_sets.json

The refs are those that ``cfs-tag migrate`` makes, and all others as they are recorded.  What they keep is followed by object
(``graph.py``): never less than what cfsctl keeps, which follows links.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from cfs_tags import Repository
from cfs_tags.graph import Follow, Graph, Links
from cfs_tags.repo import layout, refs
from cfs_tags.repo.store import ReadRepo
from cfs_tags.values import ObjectId

HOSTS = Path(__file__).resolve().parent.parent / "tests" / "data" / "hosts"
BOOTC_TAG = "/oci/localhost%2Fbootc-"
"""Only bootc's tags may go: it removes those of deployments that it does not see."""
OURS = (layout.DEPLOYMENTS, layout.CONFIGS, layout.DEPLOYMENT_IMAGES, layout.BOUND)


def main() -> None:
    """Print the document."""
    hosts = {archive.name.removesuffix(".tar.gz"): of_host(archive) for archive in sorted(HOSTS.glob("*.tar.gz"))}
    json.dump({"version": 1, "hosts": hosts}, sys.stdout, indent=1, sort_keys=True)
    print()


def of_host(archive: Path) -> dict[str, object]:
    """Refs and live set of one host."""
    booted = json.loads(archive.with_name(archive.name.replace(".tar.gz", ".json")).read_text())["booted"]
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        with tarfile.open(archive) as tar:
            tar.extractall(root, filter="tar")
        options = ("--run", str(root / "run"), "--booted", booted, "--esp", "none")
        command = [str(Path(sys.executable).with_name("cfs-tag")), "--sysroot", str(root), "migrate", *options, "--json"]
        said = subprocess.run(command, capture_output=True, text=True, check=False)
        if said.returncode not in (0, 4):  # 4: some deployment is unresolved, as recorded
            sys.exit(f"{archive.name}: {said.stderr}")
        with Repository.open(root / "composefs") as repo:
            found = {path: link for path, link in sorted(refs.everything(repo).items()) if BOOTC_TAG not in path}
            made = {path: link for path, link in found.items() if path.startswith(OURS)}
            return {"booted": booted, "refs": made, "survive": live(repo, found)}


def live(repo: ReadRepo, found: dict[str, str]) -> list[str]:
    """Paths of the links and objects that these refs keep."""
    problems: list[str] = []
    links = Links.read(repo, problems)
    graph = Graph(repo, links)
    for path, link in found.items():
        edge = links.edge(path.partition("/")[0], layout.ref_target(path, link))
        if edge is None:
            sys.exit(f"{path} is dangling")
        graph.add(edge, path)
    kept: set[str] = set()
    size = repo.algorithm.size
    for visit in graph.walk():
        follow, target, name = visit.edge
        table = [ObjectId.of_bytes(visit.table[at : at + size]) for at in range(0, len(visit.table), size)]
        kept.update(layout.object_path(object_id) for object_id in (target, *table))
        if follow is Follow.STREAM and links.name_of(target) is not None:
            kept.add(f"{layout.STREAMS}/{links.name_of(target)}")
        elif follow is Follow.IMAGE:
            kept.add(f"{layout.IMAGES}/{name}")
        if visit.error is not None:
            problems.append(visit.error.message)
    if problems:
        sys.exit("; ".join(problems))
    return sorted(kept)


if __name__ == "__main__":
    main()
