"""Images, files and parquet that the tests encode themselves, so that every expected pixel is known."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def picture(seed: int, height: int = 6, width: int = 8) -> np.ndarray:
    """uint8 [height, width, 3], random."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encode(image: Image.Image | np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    """The bytes of an image file."""
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def write_images(folder: Path, names: list[str], first_seed: int = 0, **size: int) -> None:
    """PNG files, each with its own random picture: seeds ``first_seed`` on, in the order of the names."""
    for seed, name in enumerate(names, first_seed):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(picture(seed, **size)))


def write_parquet(
    path: Path,
    n_images: int,
    labels: pa.Array | list | None = None,
    *,
    names: list[str] | None = None,
    first_seed: int = 0,
    column: str = "image",
    label_column: str = "label",
) -> None:
    """A file in the Hugging Face image layout, with ClassLabel names where given."""
    content = [{"bytes": encode(picture(first_seed + i)), "path": f"{i}.png"} for i in range(n_images)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    arrays = {column: pa.array(content, kind)}
    if labels is not None:
        arrays[label_column] = labels if isinstance(labels, pa.Array) else pa.array(labels)
    table = pa.table(arrays)
    if names is not None:
        features = {column: {"_type": "Image"}, label_column: {"_type": "ClassLabel", "names": names}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
