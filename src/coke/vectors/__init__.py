"""Rows of features from wherever they are, through one interface: block by block, never copied whole."""

from coke.vectors.open import Vectors, open_vectors

__all__ = ["Vectors", "open_vectors"]
