"""Choosing: M of N images or rows, even over bounded clusters, without near-duplicates. `coke.curate` is the door."""

from coke.curation.choose import Choice
from coke.curation.curate import curate

__all__ = ["Choice", "curate"]
