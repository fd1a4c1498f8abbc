"""Damaged and hostile files of vectors: one line of error or the rows, and no memory on their word."""

from __future__ import annotations

import resource
import struct
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from coke.errors import CokeError, DataError
from coke.vectors import open_vectors
from coke.vectors.names import names_of

ROWS = np.arange(12, dtype=np.float32).reshape(4, 3)


def read(path: Path) -> np.ndarray:
    return torch.cat([block for _, block in open_vectors(path).blocks(3)]).numpy()


def header(text: str, version: int = 1, length: int | None = None) -> bytes:
    length = len(text) if length is None else length
    return (
        b"\x93NUMPY"
        + bytes([version, 0])
        + struct.pack("<H" if version == 1 else "<I", length)
        + text.encode()
    )


def stated(shape: object, descr: object = "<f4") -> str:
    return f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}\n"


@pytest.mark.parametrize(
    "content",
    [
        *(
            header(stated(shape))
            for shape in ("(-1, 4)", "(-2, -2)", "(10**9, 4)", f"({10**18}, 4)", f"({10**30}, 4)")
        ),
        *(
            header(stated(shape))
            for shape in ("(True, 4)", "(2.0, 2)", "[2, 2]", "None", f"({'9' * 5000}, 2)")
        ),
        *(header(stated((2, 2), descr)) for descr in (4, "zzz", ",", "|V0", "O", [("a", "<f4")])),
        *map(header, ("{'descr': '<f4'", "(" * 5000, "-" * 9000 + "1", "{[]: 1}", "{'descr': '<f4\0', }")),
        *(header("{", version, 2**32 - 1) for version in (2, 3)),
        header("{", 9),
        b"",
        b"\x93NUM",
    ],
)
def test_headers_of_npy_are_refused_in_one_line(tmp_path, content):
    (tmp_path / "x.npy").write_bytes(content + bytes(16))
    with pytest.raises(DataError, match=r"x\.npy (cannot be read as \.npy|must be numbers)") as caught:
        read(tmp_path / "x.npy")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 800


def test_a_length_of_4_gb_is_not_made_room_for(tmp_path):
    import tracemalloc

    (tmp_path / "x.npy").write_bytes(header("{", 2, 2**32 - 1))
    tracemalloc.start()
    with pytest.raises(DataError, match=r"its header is to have 4,294,967,295 bytes"):
        read(tmp_path / "x.npy")
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


def written(path: Path) -> bytes:
    table = pa.table({"key": list("abcd"), "v": pa.array(ROWS.tolist(), pa.list_(pa.float32()))})
    pq.write_table(table, path, use_dictionary=False, compression="none", write_statistics=False)
    return path.read_bytes()


def test_every_byte_of_a_footer_may_be_another(tmp_path):
    """Counts, types, names, offsets: the rows come as they were written, or an error does."""
    path = tmp_path / "x.parquet"
    content = written(path)
    begin = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    kept = refused = 0
    for place in range(begin, len(content)):
        if b"ARROW:schema" in content[begin:place]:
            break  # what follows is a copy of the schema, for arrow
        for change in (1, 2, 0x80):
            damaged = bytearray(content)
            damaged[place] ^= change
            path.write_bytes(damaged)
            with suppress(CokeError):
                refused += 1
                assert read(path).ndim == 2
                refused, kept = refused - 1, kept + 1
    assert min(kept, refused) > 20


def test_rows_that_are_not_there_are_missed(tmp_path):
    path = tmp_path / "x.parquet"
    written(path)
    vectors = open_vectors(path)
    vectors._ends, vectors.n_rows = vectors._ends + 1, 5  # as a file's metadata would say of one row more
    with pytest.raises(DataError, match="states 5 rows and holds 4: write it anew"):
        list(vectors.blocks(2))


def test_columns_of_one_name(tmp_path):
    path, lists = tmp_path / "x.parquet", pa.array(ROWS.tolist())
    pq.write_table(
        pa.Table.from_arrays([lists, pa.array([1, 2, 3, 4]), pa.array([1, 2, 3, 4])], ["v", "a", "a"]), path
    )
    assert np.array_equal(read(path), ROWS)
    pq.write_table(pa.Table.from_arrays([lists, lists], ["v", "v"]), path)
    for column in (None, "v"):
        with pytest.raises(DataError, match=r"several columns of vectors, v, v|2 columns 'v': rename one"):
            open_vectors(path, column=column)


def test_rows_are_not_read_where_they_would_not_fit(tmp_path):
    path = tmp_path / "x.parquet"
    schema = pa.schema(
        [("v", pa.list_(pa.float32(), 2**31 - 1))]
    )  # such a row could be null, and then take no place
    pq.write_table(schema.empty_table(), path)
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (30_000_000_000, before[1]))
    try:
        with pytest.raises(DataError, match=r"a row of 2,147,483,647 values: 34\.4 GB must stay in memory"):
            open_vectors(path)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


KEYS = [
    "key\na\n\udcff\nc\nd",
    "key\na\nb\nc",
    "name\na\nb\nc\nd",
    "",
    "key,label\na,b\nb\nc,d\nd,e",
    'key\n"a' + "b" * 200_000,
]


@pytest.mark.parametrize("text", KEYS)
def test_keys_beside_an_array_that_are_none(tmp_path, text):
    np.save(tmp_path / "x.npy", ROWS)
    (tmp_path / "x.keys.csv").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(DataError, match=r"x\.keys\.csv(:| has| cannot|, row 3)"):
        names_of(open_vectors(tmp_path / "x.npy"))


def test_a_folder_may_hold_anything(tmp_path):
    np.save(tmp_path / "a.npy", ROWS)
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "up").symlink_to(tmp_path.parent)
    assert np.array_equal(read(tmp_path), ROWS)
    (tmp_path / "b.npy").symlink_to("/dev/zero")
    with pytest.raises(DataError, match=r"b\.npy is a device, no regular file"):
        read(tmp_path)
    (tmp_path / "b.npy").unlink()
    (tmp_path / "b.npy").symlink_to(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"b\.npy: there is no such file"):
        read(tmp_path)
