"""What every export is checked with: pictures, and how far two computations on them may lie apart."""

from __future__ import annotations

import numpy as np
from PIL import Image
from torch import Tensor

from coke.errors import DataError
from coke.model.model import Model

_SHAPES = ((421, 287), (300, 400), (512, 512), (97, 131), (640, 360), (224, 224), (333, 500), (60, 48))


def pictures() -> list[Image.Image]:
    """Eight smooth random pictures of various shapes, the same ones always, in place of photographs."""
    generator, found = np.random.default_rng(0), []
    for width, height in _SHAPES:
        rough = generator.integers(0, 256, (height // 12, width // 12, 3), dtype=np.uint8)
        found.append(Image.fromarray(rough).resize((width, height), Image.Resampling.BICUBIC))
    return found


def pixels(model: Model) -> Tensor:
    """The pictures as a model sees them: uint8 [8, 3, S, S]."""
    return next(model.batches(pictures(), len(_SHAPES)))


def within(limit: float, theirs: Tensor, ours: Tensor, what: str) -> float:
    """The largest difference of two tensors, relative to ``ours`` where that goes beyond 1.

    Raises `DataError` where it is larger than a limit, or not a number: then nothing may be written.
    """
    if theirs.shape != ours.shape:
        came = f"{list(theirs.shape)} in place of {list(ours.shape)}"
        raise DataError(f"{what} gives {came}: nothing was written")
    apart = float((theirs.double() - ours.double()).abs().max() / max(1.0, float(ours.abs().max())))
    if not apart <= limit:
        came = f"{apart:.1e} from coke's own, more than {limit:.0e}"
        raise DataError(f"{what} differs by {came}: nothing was written")
    return apart
