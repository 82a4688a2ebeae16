"""From a boot entry to manifest, config and layers, without a network: updater_lookup.py SYSROOT [DEPLOYMENT]

DEPLOYMENT is an id, a prefix of one, booted, staged, rollback or the path of a boot entry; without it all are listed.
"""

from __future__ import annotations

import sys

from cfs_tags import Repository
from cfs_tags.errors import CfsTagsError


def main(sysroot: str, deployment: str | None = None) -> int:
    """Print what a deployment was made from."""
    with Repository.open(f"{sysroot}/composefs") as repo:
        if deployment is None:
            for row in repo.deployments.list():
                health = ", ".join(finding.code for finding in row.health) or "ok"
                print(f"{row.id}  {row.state}  {row.image}  {row.ref}  {health}")
            return 0
        found = repo.deployments.look_up(deployment)
        if found.digest is None:
            print("several manifests fit:" if found.ambiguous else "no manifest:", *found.candidates, *found.notes, sep="\n  ")
            return 4
        name = f"@{found.digest}"
        image = repo.image(name)
        print(f"manifest {found.digest} (by {found.source}), {len(repo.raw(name, 'manifest'))} bytes")
        print(f"config {image.manifest.config.digest}")
        for layer in image.layers:
            print(f"layer {layer.diff_id}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(*sys.argv[1:]))
    except CfsTagsError as error:
        print(error, f"({error.hint})" if error.hint else "", file=sys.stderr)
        sys.exit(error.status)
