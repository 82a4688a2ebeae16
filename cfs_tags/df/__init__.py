"""Who takes how much: by tag, deployment and owner; shared, and freed if one were deleted; what a collection would free.

Every object is counted once for each root that it is reached from, in the bytes that it takes on disk.
"""

from cfs_tags.df.reach import Used
from cfs_tags.df.shares import Part, Shares, shares
from cfs_tags.df.usage import ImageUse, Owned, Sharing, Usage, measure

__all__ = ["ImageUse", "Owned", "Part", "Shares", "Sharing", "Usage", "Used", "measure", "shares"]
