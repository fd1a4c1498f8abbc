"""What lies near what: neighbours, a map, clusters as people look at them, for report, explorer and curation."""

from coke.explore.groups import Groups, share_between
from coke.explore.map import Map, map_of
from coke.explore.neighbours import Neighbours, find_neighbours

__all__ = ["Groups", "Map", "Neighbours", "find_neighbours", "map_of", "share_between"]
