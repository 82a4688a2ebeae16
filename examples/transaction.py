"""Release several apps at once: transaction.py REPOSITORY APP...

For every APP, ``APP:stable`` is moved to what ``APP:candidate`` names, and the candidate is deleted; the old stable stays as
``APP:previous``.  All of it happens or nothing does, also when the machine crashes half way: the next writer finishes it or
takes it back.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

from cfs_tags import Instruction, Repository
from cfs_tags.errors import CfsTagsError

ABSENT = "absent"


def release(repo: Repository, apps: list[str]) -> Iterator[Instruction]:
    """The instructions: each says what it expects."""
    for app in apps:
        candidate = repo.tags.resolve(f"{app}:candidate")
        stable = repo.tags.get(f"{app}:stable")
        yield Instruction("set", f"{app}:stable", f"@{candidate}", expected=stable.value if stable else ABSENT)
        if stable is not None:
            yield Instruction("set", f"{app}:previous", f"@{stable.value}")
        yield Instruction("delete", f"{app}:candidate", expected=candidate)


def main(path: str, *apps: str) -> int:
    """Print what was done to each tag."""
    with Repository.open(path, write=True) as repo:
        made = repo.tags.update(release(repo, list(apps)), reason=f"release of {', '.join(apps)}")
        for error in repo.recovered:
            print(f"found first: {error}")
    for result in made:
        print(f"{result.name}: {result.done}, now {result.new or ABSENT}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(*sys.argv[1:]))
    except CfsTagsError as error:
        print(error, file=sys.stderr)
        sys.exit(error.status)
