"""Images to learn from: where they lie, what they hold, which of them probes use.

`open_data` turns a folder, list, parquet file, torchvision data set or the name of the embedded default into
`Splits` of `ImageSet`s. Every image was decoded once before it is returned, so what cannot be read is known.
"""

from __future__ import annotations

from coke.images.image_set import ImageSet
from coke.images.open import find_rows, has_columns, open_data
from coke.images.splits import Splits
from coke.images.table import Rows
from coke.images.textures import textures
from coke.images.unreadable import Unreadable

__all__ = ["ImageSet", "Rows", "Splits", "Unreadable", "find_rows", "has_columns", "open_data", "textures"]
