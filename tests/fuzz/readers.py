"""What is fuzzed: each reader, with files that it takes and that are then damaged. Also for benchmarks/reliability.py.

A reader ends in one of three ways: with what it read, a `CokeError` of one printable line, or a fault of ours.
"""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from coke.bounded.files import as_bytes, load_clusterings
from coke.errors import CokeError
from coke.images.decode import decode
from coke.images.labels import number_text
from coke.images.open import find_rows
from coke.reading import read_file
from coke.training.config import chosen
from coke.training.recipes import RECIPES
from coke.training.settings import parse_overrides
from coke.vectors import open_vectors
from coke.vectors.names import names_of

ROWS = np.arange(12, dtype=np.float32).reshape(4, 3)


@dataclass(frozen=True)
class Reader:
    """A file's name, contents that are fine, and what reads it. Text is damaged by what texts have, too."""

    name: str
    seeds: Callable[[], Sequence[bytes]]
    read: Callable[[Path], object]
    is_text: bool = False


def outcome(reader: Reader, path: Path) -> str | None:
    """None where the file was read, else the error's sentence. Raises whatever is no sentence."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow, about what it then reads or refuses
            reader.read(path)
    except CokeError as error:
        said = str(error)
        assert said
        assert said.isprintable(), repr(said)
        return said
    return None


def damage(content: bytes, edits: Sequence[tuple[int, float, int]]) -> bytes:
    """Bytes changed, flipped, cut out, doubled, put in or moved: (kind, place from 0 to 1, number) each."""
    data = bytearray(content)
    for kind, share, number in edits:
        place = int(share * len(data)) if data else 0
        if kind == 0 and data:
            data[min(place, len(data) - 1)] = number % 256
        elif kind == 1 and data:
            data[min(place, len(data) - 1)] ^= 1 << number % 8
        elif kind == 2:
            del data[place : place + 1 + number % 16]
        elif kind == 3:
            data[place:place] = data[place : place + 1 + number % 64]
        elif kind == 4:
            data[place:place] = _ODD[number % len(_ODD)]
        elif kind == 5:
            del data[place:]
        elif kind == 6:
            data[place : place + 4] = (number * 0x01010101 & 0xFFFFFFFF).to_bytes(4, "little")
    return bytes(data)


_ODD = [
    *(
        b"\0",
        b"\xff" * 8,
        b"\x80\x00\x00\x00",
        b"\n",
        b"\r",
        b",",
        b'"',
        b"'",
        b"=",
        b"[",
        b"{",
        b"}",
        b"]",
        b"(" * 60,
    ),
    *(
        b"-1",
        b"+-3",
        b"9" * 5000,
        b"1e999",
        b"nan",
        b"null",
        b"true",
        b"\x1b[31m",
        "\u202e".encode(),
        b"/dev/zero",
    ),
    *(
        b"!!python/name:os.system ",
        b"!!timestamp 2001-99-99",
        b"!!binary a",
        b"&a [*a]",
        b"<<: 3",
        b"? [",
        b"[" * 2000,
    ),
]


def _pictures() -> Iterator[bytes]:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 11, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    kinds: list[tuple[str, str, dict[str, Any]]] = [
        *((mode, "PNG", {}) for mode in ("RGB", "RGBA", "P", "L", "1", "I;16")),
        *(("RGB", "JPEG", {"progressive": progressive}) for progressive in (False, True)),
        *(("RGB", "WEBP", {"lossless": lossless}) for lossless in (False, True)),
        *(("RGB", "TIFF", {"compression": compression}) for compression in (None, "tiff_lzw", "jpeg")),
        *(("RGB", kind, {}) for kind in ("GIF", "BMP", "PPM", "AVIF", "JPEG2000")),
    ]
    for mode, kind, options in kinds:
        stream = io.BytesIO()
        with suppress(KeyError, OSError):  # a format that this Pillow does not write
            (picture if mode == "RGB" else picture.convert(mode[:1] if mode == "I;16" else mode)).save(
                stream, kind, **options
            )
            yield stream.getvalue()


def _parquet(**columns: Any) -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.table(columns), stream)
    return stream.getvalue()


def _image_parquet() -> Iterator[bytes]:
    content = next(_pictures())
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    yield _parquet(image=pa.array([{"bytes": content, "path": "a"}] * 3, kind), label=["a", "b", None])
    yield _parquet(image=[content] * 3, label=[0, 1, 1])
    names = {"info": {"features": {"label": {"_type": "ClassLabel", "names": ["a", "b"]}}}}
    table = pa.table({"image": [content] * 3, "label": [0, 1, 1]})
    stream = io.BytesIO()
    pq.write_table(
        table.replace_schema_metadata({"huggingface": json.dumps(names)}), stream, compression="none"
    )
    yield stream.getvalue()


def _vector_parquet() -> Iterator[bytes]:
    for kind in (pa.list_(pa.float32()), pa.list_(pa.float32(), 3), pa.large_list(pa.float64())):
        yield _parquet(key=list("abcd"), embedding=pa.array(ROWS.tolist(), kind))


def _arrays() -> Iterator[bytes]:
    for array in (ROWS, ROWS.astype(">f8").T, ROWS.astype(np.float16), ROWS.astype(np.int64)):
        stream = io.BytesIO()
        np.save(stream, array)
        yield stream.getvalue()
        header = stream.getvalue()[10:]
        yield b"\x93NUMPY\2\0" + len(header[: header.index(b"\n") + 1]).to_bytes(4, "little") + header


def _clusterings() -> Iterator[bytes]:
    heads = [(torch.ones(size, 2), torch.zeros(size), torch.ones(size).long()) for size in (3, 2)]
    yield as_bytes(heads[:1], "euclidean", {"inertia": 1.5, "seed": 0})
    yield as_bytes(heads, "cosine", {})


def _read_images(path: Path) -> None:
    for rows in find_rows(path):
        for row in range(min(len(rows.keys), 8)):
            with suppress(CokeError, OSError):  # one unreadable image
                decode(rows.source.load(row), 10_000)


def _read_vectors(path: Path) -> None:
    vectors = open_vectors(path)
    assert sum(len(block) for _, block in vectors.blocks(64)) == vectors.n_rows
    names_of(vectors)


def _read_keys(path: Path) -> None:
    np.save(path.with_name("x.npy"), ROWS)
    names_of(open_vectors(path.with_name("x.npy")))


def _read_words(path: Path) -> None:
    words = (
        path.read_bytes().decode(errors="surrogateescape").replace("\0", "").split("\n")
    )  # as of a command line
    overrides = parse_overrides([word for word in words if word])
    chosen(RECIPES["auto"].settings, overrides)


READERS = {
    "image": Reader("x.png", lambda: list(_pictures()), lambda path: decode(read_file(path), 10_000)),
    "images in parquet": Reader("x.parquet", lambda: list(_image_parquet()), _read_images),
    "list": Reader("x.txt", lambda: [b"a.png\nb/c.png\n\nd.png\n"], _read_images, True),
    "table": Reader(
        "x.csv",
        lambda: [b"path,label,split\na.png,3,train\nb.png,,test\n", b'path,label\n"a,b",cat\nc,dog\n'],
        _read_images,
        True,
    ),
    "labels": Reader(
        "x",
        lambda: [b"1\n2\n\n-3", b"cat\ndog\n", b"0.5\n1"],
        lambda path: number_text(path.read_bytes().decode(errors="replace").split("\n"), "labels"),
        True,
    ),
    ".npy": Reader("x.npy", lambda: list(_arrays()), _read_vectors),
    "vectors in parquet": Reader("x.parquet", lambda: list(_vector_parquet()), _read_vectors),
    "keys": Reader("x.keys.csv", lambda: [b"key,label\na,1\nb,2\nc,3\nd,4\n"], _read_keys, True),
    "clusters": Reader("x.safetensors", lambda: list(_clusterings()), load_clusterings),
    "settings": Reader(
        "x",
        lambda: [
            b"epochs=20\nn_clusters=[10, 20]\nobjective.temperature=0.2\nviews.0.crop=[0.2, 1]\ninit=null\n"
        ],
        _read_words,
        True,
    ),
}


@cache
def seeds_of(name: str) -> list[bytes]:
    """Contents that a reader takes."""
    return list(READERS[name].seeds())
