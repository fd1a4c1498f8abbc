"""One interface over every kind of input: the same rows come out, however they are stored and cut."""

import subprocess
import sys
import warnings

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coke.errors import ConfigError, DataError
from coke.vectors import Vectors, open_vectors
from coke.vectors.arrays import torch_type
from coke.vectors.source import recut

N, D = 23, 5
ROWS = np.random.default_rng(0).normal(size=(N, D)).astype(np.float32)


def batches_of(*sizes):
    return lambda: iter(np.split(ROWS, np.cumsum(sizes)[:-1]))


class Frame:
    """What a data frame shows: columns when iterated over, no dtype of its own, and an array on request."""

    shape = ROWS.shape

    def __iter__(self):
        return iter("abcde")

    def __getitem__(self, column):
        raise KeyError(column)

    def __array__(self, dtype=None, copy=None):
        return ROWS.astype(dtype or ROWS.dtype)


class OnDisk:
    """An array as h5py shows it: read by slices; reading it whole is what must not happen."""

    shape, dtype, ndim = ROWS.shape, ROWS.dtype, 2

    def __getitem__(self, rows):
        assert isinstance(rows, slice)
        assert rows.stop - rows.start <= 16_384
        return ROWS[rows]

    def __array__(self, dtype=None, copy=None):
        raise AssertionError("read whole")


def saved(tmp_path, *cuts, suffix="npy"):
    """ROWS in one file, or cut into several in one folder."""
    folder = tmp_path / f"{suffix}{len(cuts)}"
    folder.mkdir()
    for number, part in enumerate(np.split(ROWS, cuts)):
        if suffix == "npy":
            np.save(folder / f"part{number}.npy", part)
        else:
            lists = pa.FixedSizeListArray.from_arrays(pa.array(part.ravel()), D)
            pq.write_table(pa.table({"embedding": lists}), folder / f"part{number}.parquet", row_group_size=4)
    return folder if cuts else folder / f"part0.{suffix}"


def opened(kind, tmp_path) -> Vectors:
    source = {
        "array": lambda: ROWS,
        "fortran": lambda: np.asfortranarray(ROWS),
        "strided": lambda: np.repeat(ROWS, 2, axis=0)[::2],
        "backwards": lambda: ROWS[::-1].copy()[::-1],
        "big-endian": lambda: ROWS.astype(">f4"),
        "unaligned": lambda: (
            np.frombuffer(b"x" + ROWS.tobytes(), np.uint8)[1:].view(np.float32).reshape(N, D)
        ),
        "field": lambda: np.rec.fromarrays([np.ones((N, D), "i1"), ROWS], names="a,b")["b"],
        "read-only": lambda: np.frombuffer(ROWS.tobytes(), np.float32).reshape(N, D),
        "objects": lambda: ROWS.astype(object),
        "masked": lambda: np.ma.array(ROWS, mask=False),
        "memory map": lambda: np.load(saved(tmp_path), mmap_mode="r"),
        "list": ROWS.tolist,
        "list of tensors": lambda: list(torch.from_numpy(ROWS)),
        "list of arrays": lambda: list(ROWS),
        "frame": Frame,
        "on disk": OnDisk,
        "tensor": lambda: torch.from_numpy(ROWS).clone().requires_grad_(),
        "transposed tensor": lambda: torch.from_numpy(ROWS.T.copy()).T,
        "npy": lambda: saved(tmp_path),
        "npy path as text": lambda: str(saved(tmp_path)),
        "npy folder": lambda: saved(tmp_path, 3, 3, 4, 20),
        "parquet": lambda: saved(tmp_path, suffix="parquet"),
        "parquet folder": lambda: saved(tmp_path, 7, 7, 8, suffix="parquet"),
        "function": lambda: batches_of(1, 0, 9, 13),
        "list of batches": lambda: list(batches_of(9, 1, 13)()),
        "equal batches": lambda: list(batches_of(23)()),
        "loader": lambda: torch.utils.data.DataLoader(
            torch.utils.data.TensorDataset(torch.from_numpy(ROWS)), batch_size=4
        ),
    }[kind]
    return open_vectors(source())


KINDS = {
    "numpy": "array, fortran, strided, backwards, big-endian, unaligned, field, read-only, objects, masked, "
    "memory map, list, list of arrays, frame, on disk",
    "tensor": "tensor, transposed tensor, list of tensors",
    "file": "npy, npy path as text, npy folder, parquet, parquet folder",
    "stream": "function, list of batches, equal batches, loader",
}
EVERY = [(kind, name) for kind, names in KINDS.items() for name in names.split(", ")]
SPENT = iter([ROWS])


@pytest.mark.parametrize(("kind", "name"), EVERY, ids=[name for _, name in EVERY])
def test_the_same_rows_come_out_of_every_kind(kind, name, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vectors = opened(name, tmp_path)
        check_all_ways(vectors)
    assert vectors.kind == kind
    assert vectors.device.type == "cpu"
    assert vectors.dtype == (torch.float64 if name in ("list", "objects") else torch.float32)
    assert f"23 x 5 {vectors.dtype}" in repr(vectors)


def check_all_ways(vectors):
    """Blocks of every size, twice; rows by index; slices, slices of slices, and rows of those."""
    wanted = torch.from_numpy(ROWS)
    assert (vectors.n_rows, len(vectors), vectors.n_features) == (N, N, D)
    for block_rows in (1, 4, 7, 22, 23, 24, 1000, 4):
        firsts, blocks = zip(*vectors.blocks(block_rows), strict=True)
        assert list(firsts) == list(range(0, N, block_rows))
        assert {len(block) for block in blocks[:-1]} <= {block_rows}
        assert all(block.dtype == vectors.dtype for block in blocks)
        assert torch.equal(torch.cat(blocks).float(), wanted)
    some = torch.tensor([0, 3, 3, 4, 11, 22])
    for rows in (some, some.numpy(), some[:1], some.to(torch.int32)):
        assert torch.equal(vectors.take(rows).float(), wanted[torch.as_tensor(rows).long()])
    nothing = vectors.take(torch.empty(0, dtype=torch.int64))
    assert (nothing.shape, nothing.dtype) == ((0, D), vectors.dtype)
    for start, stop in ((0, N), (0, 8), (8, 9), (6, 21), (20, N), (5, 5), (N, N)):
        part = vectors.slice(start, stop)
        assert part.n_rows == stop - start
        rows = [block for _, block in part.blocks(4)]
        assert torch.equal(torch.cat([*rows, torch.empty(0, D)]).float(), wanted[start:stop])
        assert [first for first, _ in part.blocks(4)] == list(range(0, stop - start, 4))
    inner = vectors.slice(6, 21).slice(2, 12)
    assert torch.equal(torch.cat([block for _, block in inner.blocks(3)]).float(), wanted[8:18])
    assert torch.equal(inner.take(torch.tensor([0, 9])).float(), wanted[[8, 17]])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 9), max_size=12), st.integers(1, 12))
def test_recut_keeps_rows_and_order(sizes, block_rows):
    rows = torch.arange(sum(sizes))[:, None]
    blocks = list(recut(iter(rows.split(sizes)) if sizes else iter(()), block_rows))
    assert torch.equal(torch.cat([rows[:0], *blocks]), rows)
    assert [len(block) for block in blocks[:-1]] == [block_rows] * (len(blocks) - 1)
    assert not blocks or 0 < len(blocks[-1]) <= block_rows


@pytest.mark.parametrize("name", ["array", "fortran", "strided", "read-only", "tensor", "transposed tensor"])
def test_blocks_in_memory_are_views(name, tmp_path):
    vectors = opened(name, tmp_path)
    first = next(iter(vectors.blocks(4)))[1]
    again = next(iter(vectors.blocks(4)))[1]
    assert first.data_ptr() == again.data_ptr()
    assert not first.requires_grad


def test_blocks_of_a_memory_map_are_views_of_it(tmp_path):
    mapped = np.load(saved(tmp_path), mmap_mode="r")
    pointer = mapped.__array_interface__["data"][0]
    for first, block in open_vectors(mapped).blocks(4):
        assert block.data_ptr() == pointer + first * D * 4


@pytest.mark.parametrize(
    ("stored", "came"),
    [
        ("float16", torch.float16),
        ("float32", torch.float32),
        ("float64", torch.float64),
        ("longdouble", torch.float64),
        ("int8", torch.int8),
        ("int64", torch.int64),
        (">i2", torch.int16),
        ("uint8", torch.uint8),
        ("uint16", torch.int32),
        ("uint32", torch.int64),
        ("uint64", torch.float64),
        ("bool", torch.uint8),
    ],
)
def test_types_are_kept_where_torch_has_them(stored, came, tmp_path):
    array = np.array([[0, 1], [1, 0], [1, 1]], dtype=stored)
    np.save(tmp_path / "array.npy", array)
    for source in (array, tmp_path / "array.npy", lambda: iter([array])):
        vectors = open_vectors(source)
        assert vectors.dtype == came
        blocks = [block for _, block in vectors.blocks(2)]
        assert {block.dtype for block in blocks} == {came}
        assert torch.cat(blocks).tolist() == [[0, 1], [1, 0], [1, 1]]
        assert vectors.take(torch.tensor([2])).dtype == came


def test_bfloat16_and_unsigned_tensors():
    assert open_vectors(torch.ones(2, 2, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert open_vectors(torch.ones(2, 2, dtype=torch.uint16)).dtype == torch.int32
    assert open_vectors(lambda: iter([torch.ones(2, 2).bfloat16()])).dtype == torch.bfloat16


def test_opened_vectors_pass_through():
    vectors = open_vectors(ROWS)
    assert open_vectors(vectors) is vectors
    elsewhere = open_vectors(vectors, device="meta")
    assert (elsewhere.device.type, vectors.device.type) == ("meta", "cpu")


@pytest.mark.parametrize("source", [ROWS, torch.from_numpy(ROWS), batches_of(20, 3)])
def test_blocks_arrive_where_asked(source):
    vectors = open_vectors(source, device="meta")  # a device that every machine has
    assert vectors.device.type == "meta"
    assert {block.device.type for _, block in vectors.blocks(4)} == {"meta"}
    assert vectors.take(torch.tensor([1])).device.type == "meta"


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_device_that_is_not_there_is_an_error():
    with pytest.raises(ConfigError, match="device='cuda' cannot be used here"):
        open_vectors(ROWS, device="cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_tensor_on_a_gpu_stays_there(tmp_path):
    on_gpu = torch.from_numpy(ROWS).cuda()
    assert next(iter(open_vectors(on_gpu).blocks(4)))[1].device.type == "cuda"
    assert open_vectors(lambda: iter([on_gpu])).take(torch.tensor([3])).device.type == "cuda"
    file = open_vectors(saved(tmp_path), device="cuda")
    assert torch.equal(torch.cat([block for _, block in file.blocks(4)]), on_gpu)
    check_all_ways(open_vectors(on_gpu, device="cpu"))


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        (np.arange(3.0), DataError, "Reshape your data"),
        (torch.arange(3.0), DataError, "Reshape your data"),
        ([1.0, 2.0], DataError, "Reshape your data"),
        (np.float64(3), DataError, "Reshape your data"),
        (np.zeros((2, 2, 2)), DataError, r"got shape \(2, 2, 2\)"),
        (np.zeros((0, 3)), DataError, r"0 sample\(s\)"),
        (torch.zeros(0, 3), DataError, r"0 sample\(s\)"),
        (lambda: iter([]), DataError, r"0 sample\(s\)"),
        (np.zeros((3, 0)), DataError, r"0 feature\(s\) \(shape=\(3, 0\)\) while a minimum of 1 is required."),
        (lambda: iter([np.zeros((3, 0))]), DataError, r"0 feature\(s\)"),
        (np.ones((2, 2), complex), DataError, "Complex data not supported"),
        (torch.ones(2, 2, dtype=torch.complex64), DataError, "Complex data not supported"),
        ([[1j, 2.0]], DataError, "Complex data not supported"),
        (np.array([[1j, 2]], dtype=object), DataError, "Complex data not supported"),
        (lambda: iter([np.ones((2, 2), complex)]), DataError, "Complex data not supported: batch 0 of X"),
        (np.array([["a", "b"]]), DataError, "X must be numbers, its dtype is <U1"),
        (np.array([["a", "b"]], dtype=object), DataError, "X of dtype object .* could not convert"),
        (np.array([[{"a": 1}, 2.0]], dtype=object), TypeError, "argument must be .* string.* number"),
        (np.zeros((2, 2), "datetime64[s]"), DataError, "X must be numbers, its dtype is datetime64"),
        (np.zeros((2, 2), "i4,f4"), DataError, "X must be numbers"),
        ([[1.0], [2.0, 3.0]], DataError, "its rows have different lengths"),
        ([torch.zeros(2), torch.zeros(3)], DataError, "X cannot be read as an array"),
        (np.ma.array([[1.0, 2.0]], mask=[[True, False]]), DataError, "X has 1 masked values"),
        (scipy.sparse.csr_matrix(np.eye(2)), TypeError, "Sparse data is not supported, a dense"),
        (scipy.sparse.coo_array(np.eye(2)), TypeError, "Sparse data is not supported, a dense"),
        (torch.eye(2).to_sparse(), TypeError, "Sparse tensors are not supported"),
        (
            lambda: iter([torch.eye(2).to_sparse()]),
            TypeError,
            "not supported .batch 0 of X is torch.sparse_coo",
        ),
        (3, DataError, "got int"),
        (None, DataError, "got NoneType"),
        (b"abc", DataError, "got bytes"),
        ((row for row in ROWS), DataError, "a generator, which can be gone through only once"),
        (iter([ROWS]), DataError, "a list_iterator, .*pass a function"),
        ({"a": 1}, DataError, "batch 0 of X must be an array or a tensor"),
        (lambda: 3, DataError, r"X\(\) must return an iterator over batches .* got int"),
        (lambda: iter([(ROWS, ROWS)]), DataError, "batch 0 of X is a tuple of 2: yield the vectors"),
        (lambda: iter([ROWS, ROWS[0]]), DataError, r"batch 1 of X must be rows of features.* \(5,\)"),
        (lambda: iter([ROWS, ROWS[:, :3]]), DataError, "3 features from row 23 on, 5 before"),
        (lambda: SPENT, DataError, "returns the same iterator again"),
    ],
)
def test_what_cannot_be_clustered_is_refused(source, error, message):
    with pytest.raises(error, match=message):
        open_vectors(source)


def objects(*rows):
    """A column as data frames hold it: an array of objects [N]."""
    column = np.empty(len(rows), dtype=object)
    column[:] = rows
    return column


@pytest.mark.parametrize("convert", [list, tuple, np.asarray, lambda row: np.asarray(row, "f4")])
def test_a_column_of_rows_is_stacked(convert):
    vectors = open_vectors(objects(*(convert(row) for row in ROWS.tolist())))
    assert (vectors.n_rows, vectors.n_features) == (N, D)
    assert torch.equal(vectors.take(torch.arange(N)).float(), torch.from_numpy(ROWS))
    assert vectors.dtype == (torch.float64 if convert in (list, tuple, np.asarray) else torch.float32)


class Missing:
    """What pandas has for a number that is not there."""

    def __repr__(self):
        return "<NA>"


Missing.__name__ = "NAType"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (objects([1.0, 2.0], [3.0, 4.0], [5.0]), r"row 2 has 1 values, row 0 has 2: all must have as many"),
        (objects(np.ones(2), np.ones(3)), r"row 1 has 3 values, row 0 has 2"),
        (objects([1.0, 2.0], None), r"row 1 has None, row 0 has 2"),
        (objects([1.0, 2.0], 3.0), r"row 1 has 3.0, row 0 has 2"),
        (objects([1.0, 2.0], [3.0, "x"]), "X must be numbers|no number"),
        (objects([[1.0], [2.0]], [[3.0], [4.0]]), r"got shape \(2, 2, 1\)"),
        (
            np.array([[1, 2], [3, Missing()]], dtype=object),
            r"has <NA> in row 1, column 1, no number",
        ),
        (
            np.array([[1, 2], [3, "x"]], dtype=object),
            r"has 'x' in row 1, column 1, no number: could not convert",
        ),
        (torch.zeros(2, 2).to(torch.float8_e4m3fn), r"X is torch.float8_e4m3fn, .* X.to\(torch.float32\)"),
        (torch.zeros(2, 2).to(torch.float8_e5m2), r"X is torch.float8_e5m2"),
        (lambda: iter([torch.zeros(2, 2).to(torch.float8_e5m2)]), r"batch 0 of X is torch.float8_e5m2"),
    ],
)
def test_what_cannot_be_read_is_said_with_its_place(source, message):
    with pytest.raises(DataError, match=message):
        open_vectors(source)


def test_numbers_that_torch_does_not_know_are_refused():
    """As ml_dtypes registers them with numpy: of kind f or V, under a name that torch may have as well."""
    ml_dtypes = pytest.importorskip("ml_dtypes")
    for name in ("float8_e4m3fn", "float8_e5m2", "bfloat16", "int4"):
        with pytest.raises(DataError, match="convert it to float32 first"):
            open_vectors(np.ones((2, 2), getattr(ml_dtypes, name)))


class NewFloat:
    """A dtype as a package could register it: called a float, of a name that torch has."""

    kind, itemsize, name = "f", 1, "float8_e4m3fn"

    def newbyteorder(self, order):
        return np.dtype("V1")


def test_kind_alone_does_not_make_a_number():
    with pytest.raises(DataError, match="convert it to float32 first"):
        torch_type(NewFloat(), "X")


def test_rows_that_are_not_there():
    vectors = open_vectors(ROWS)
    for rows, message in (
        ([-1], "row -1"),
        ([0, 23], "row 0 ... 23 of 23 rows"),
        ([3, 2], "ascending order"),
    ):
        with pytest.raises(DataError, match=message):
            vectors.take(torch.tensor(rows))
    for start, stop in ((-1, 3), (3, 2), (0, 24)):
        with pytest.raises(DataError, match="among the 23 of X"):
            vectors.slice(start, stop)
    with pytest.raises(ConfigError, match="block_rows must be at least 1, got 0"):
        list(vectors.blocks(0))
    with pytest.raises(DataError, match="column='a' is for parquet files"):
        open_vectors(ROWS, column="a")


def test_opening_loads_neither_pyarrow_nor_scipy():
    code = (
        "import sys, numpy; from coke.vectors import open_vectors; import coke.bounded.sizes\n"
        "list(open_vectors(numpy.ones((3, 2))).blocks(2))\n"
        "print([name for name in ('pyarrow', 'scipy', 'sklearn', 'pandas') if name in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[]"
