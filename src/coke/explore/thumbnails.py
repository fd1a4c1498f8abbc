"""Small pictures of images, for tables and pages: JPEG, of bounded size."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from PIL import Image
from torch import Tensor

from coke.errors import DataError
from coke.images import Rows
from coke.images.decode import decode
from coke.memory import usable_cpus

SHORTER, LONGER = 96, 384
"""Pixels that the sides of a small picture have at most."""
_QUALITY = 85
_AT_ONCE = 256  # images that are read ahead


def thumbnail(image: Tensor, shorter: int = SHORTER, longer: int = LONGER, **written: Any) -> bytes:
    """An image, uint8 [3, h, w], as JPEG whose sides are at most so many pixels. None is enlarged or cut.

    written: as `PIL.Image.Image.save` takes it, where it is to be another format.

    >>> import torch
    >>> small = thumbnail(torch.zeros(3, 300, 200, dtype=torch.uint8))
    >>> Image.open(io.BytesIO(small)).size
    (96, 144)
    """
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    scale = min(1, shorter / min(picture.size), longer / max(picture.size))
    if scale < 1:
        width, height = (max(1, round(side * scale)) for side in picture.size)
        picture = picture.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)
    stream = io.BytesIO()
    picture.save(stream, **(written or {"format": "JPEG", "quality": _QUALITY}))
    return stream.getvalue()


def thumbnails(
    images: Rows, rows: Sequence[int], shorter: int = SHORTER, longer: int = LONGER
) -> Iterator[bytes | str]:
    """Those of these images, in order, read by several threads; why, in place of one that cannot be read."""

    def one(row: int) -> bytes | str:
        try:
            return thumbnail(decode(images.source.load(row)), shorter, longer)
        except (DataError, OSError) as error:
            return str(error)

    with ThreadPoolExecutor(usable_cpus()) as threads:
        for start in range(0, len(rows), _AT_ONCE):
            yield from threads.map(one, rows[start : start + _AT_ONCE])
