"""List the tags of a repository with what they name: list_tags.py REPOSITORY

Takes no lock and writes nothing, so it may run at any time, beside any other program.  A broken tag is one row.
"""

from __future__ import annotations

import sys

from cfs_tags import Repository
from cfs_tags.errors import CfsTagsError, printable


def main(path: str) -> int:
    """Print a line for each tag: name, owner, digest, number of layers."""
    with Repository.open(path) as repo:
        for tag in repo.tags.list(owners=["app", "bootc"]):
            if tag.digest is None or tag.problem is not None:
                print(f"{printable(tag.name)}  {tag.owner}  broken: {tag.problem}")
                continue
            image = repo.image(f"@{tag.digest}")
            print(f"{printable(tag.name)}  {tag.owner}  {tag.digest}  {len(image.layers)} layers")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(*sys.argv[1:]))
    except CfsTagsError as error:
        print(error, file=sys.stderr)
        sys.exit(error.status)
