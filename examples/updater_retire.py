"""What an updater does when it has removed a deployment: updater_retire.py SYSROOT DEPLOYMENT [not-running]

The ref goes when every place was read and none has the deployment any more; else it stays, and the reason is said.  Of a
system that is not the running one, such as an image that is being built, say ``not-running``: then there is no kernel
command line, no mount, no /run and no mounted ESP that could have it.
"""

from __future__ import annotations

import sys
from datetime import timedelta

from cfs_tags import Repository
from cfs_tags.errors import CfsTagsError


def main(sysroot: str, deployment: str, running: str = "") -> int:
    """Print what became of the ref; the exit status is 1 where it was kept."""
    where = "none" if running == "not-running" else None
    with Repository.open(f"{sysroot}/composefs", write=True, esp=where, run=where, booted=where) as repo:
        # the updater knows that it is gone: there is no moment to wait for
        made = repo.deployments.retire(
            deployment, grace=timedelta(0), reason="removed", by="updater", timeout=timedelta(minutes=1)
        )
    for row in made.rows:
        print(f"{row.id}: {row.done}: {row.reason}")
    return 0 if all(row.done == "retired" for row in made.rows) else 1


if __name__ == "__main__":
    try:
        sys.exit(main(*sys.argv[1:]))
    except CfsTagsError as error:
        print(error, f"({error.hint})" if error.hint else "", file=sys.stderr)
        sys.exit(error.status)
