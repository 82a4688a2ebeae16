"""Make or move a tag without overwriting another change: create_tag.py REPOSITORY NAME TARGET

The value that was seen is the one that is expected: if another process moves the tag between the look and the change, the
change is refused and theirs stays.
"""

from __future__ import annotations

import sys
from datetime import timedelta

from cfs_tags import Repository
from cfs_tags.errors import CfsTagsError, ExpectationFailed

ABSENT = "absent"


def main(path: str, name: str, target: str) -> int:
    """Print what was done."""
    with Repository.open(path, write=True) as repo:
        seen = repo.tags.get(name)
        before = seen.value if seen is not None else ABSENT
        try:
            done = repo.tags.create(name, target, expected=before, reason="an example", timeout=timedelta(seconds=10))
        except ExpectationFailed as error:
            print(f"{name} was moved to {error.found} meanwhile; nothing was changed")
            return error.status
        print(f"{done.name}: {done.done}, {done.old or ABSENT} -> {done.new}")
        for line in repo.tags.log(name):
            print(f"{name}@{{{line.number}}} {line.entry.action} {line.new or ABSENT}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(*sys.argv[1:]))
    except CfsTagsError as error:
        print(error, f"({error.hint})" if error.hint else "", file=sys.stderr)
        sys.exit(error.status)
