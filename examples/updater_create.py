"""What an updater does when it has staged a deployment: updater_create.py SYSROOT DEPLOYMENT MANIFEST

DEPLOYMENT is the fs-verity digest of the EROFS image, MANIFEST the digest of the image that it was made from.  The three
links of the ref are made in one transaction, under the shared lock that the updater may hold itself; from then on no
collector takes anything of the deployment, whatever becomes of tags, origin file and boot entries.
"""

from __future__ import annotations

import sys
from datetime import timedelta

from cfs_tags import Repository
from cfs_tags.errors import CfsTagsError


def main(sysroot: str, deployment: str, manifest: str) -> int:
    """Print the refs that were made."""
    with Repository.open(f"{sysroot}/composefs", write=True) as repo:
        made = repo.deployments.create(deployment, f"@{manifest}", reason="staged", by="updater", timeout=timedelta(minutes=1))
        for change in made.changes:
            print(f"{change.path} -> {change.new}")
        if not made.changes:
            print("it has its ref already")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(*sys.argv[1:]))
    except CfsTagsError as error:
        print(error, f"({error.hint})" if error.hint else "", file=sys.stderr)
        sys.exit(error.status)
