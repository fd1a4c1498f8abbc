"""What lies near what: neighbours and a map of embeddings, for the report, the explorer and curation."""

from coke.explore.map import Map, map_of
from coke.explore.neighbours import Neighbours, find_neighbours

__all__ = ["Map", "Neighbours", "find_neighbours", "map_of"]
