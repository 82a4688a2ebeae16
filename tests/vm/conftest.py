"""What is in ``guest/`` runs in the machine alone."""

from __future__ import annotations

collect_ignore = ["guest"]
