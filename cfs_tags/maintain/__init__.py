"""Regular maintenance of a host in one unattended run: adopt, apply the policy, collect, check a part.

The steps do not depend on each other: if one is refused, this is reported and the others are done.  If nothing has changed
since a collection found nothing to do, the repository is not walked again (``settled.py``).
"""

from cfs_tags.maintain.run import Budget, Failure, Maintained, Part, maintain

__all__ = ["Budget", "Failure", "Maintained", "Part", "maintain"]
