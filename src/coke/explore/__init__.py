"""What lies near what: neighbours, a map, clusters as people look at them, for report, explorer and curation."""

from coke.explore.alike import exact_copies, nearest_pairs, outliers
from coke.explore.groups import Groups, share_between
from coke.explore.map import Map, map_of
from coke.explore.neighbours import Neighbours, find_neighbours

__all__ = [
    "Groups",
    "Map",
    "Neighbours",
    "exact_copies",
    "find_neighbours",
    "map_of",
    "nearest_pairs",
    "outliers",
    "share_between",
]
