"""Refs and tags of composefs repositories: the typed API.

>>> from datetime import timedelta
>>> from cfs_tags import Repository
>>> with Repository.open("/sysroot/composefs", write=True) as repo:   # doctest: +SKIP
...     repo.tags.create("quay.io/org/app:1", "@sha256:1f0c…", expires=timedelta(days=7))
...     for tag in repo.tags.list("quay.io/*"):
...         print(tag.name, tag.digest)

:class:`Repository` has what the commands have.  What else is in the package may change with every version.
"""

from cfs_tags.api.repository import Repository, WriteRepository
from cfs_tags.tags.instructions import Instruction
from cfs_tags.values import VERSION as __version__

__all__ = ["Instruction", "Repository", "WriteRepository", "__version__"]
