"""Refs and tags of composefs repositories: the typed API.

>>> from cfs_tags import Repository, tags, tagging          # doctest: +SKIP
>>> with Repository.open("/sysroot/composefs", write=True) as repo:   # doctest: +SKIP
...     tagging.create(repo, "quay.io/org/app:1", "@sha256:1f0c…")
...     for tag in tags.list_tags(repo):
...         print(tag.name, tag.digest)

Modules, lower layers first: :mod:`cfs_tags.errors`, :mod:`cfs_tags.values`, ``cfs_tags.formats`` (bytes), ``cfs_tags.repo``
(the disk), :mod:`cfs_tags.tags` and :mod:`cfs_tags.tagging`.
"""

from cfs_tags.repo.store import ReadRepo, Repository, WriteRepo

__all__ = ["ReadRepo", "Repository", "WriteRepo", "__version__"]

__version__ = "0.1.0"
