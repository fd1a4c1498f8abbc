"""Files of vectors: what is read, what is not read, and what each refusal says."""

import resource
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
import torch

from coke.errors import DataError
from coke.vectors import open_vectors

ROWS = np.random.default_rng(0).normal(size=(10, 3)).astype(np.float32)


def write(path, lists, **options):
    pq.write_table(pa.table(lists if isinstance(lists, dict) else {"embedding": lists}), path, **options)
    return path


def all_rows(vectors):
    return torch.cat([block for _, block in vectors.blocks(4)])


def fixed(rows):
    return pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), rows.shape[1])


@pytest.mark.parametrize("numbers", ["float16", "float32", "float64", "int8", "int64", "uint16"])
@pytest.mark.parametrize("kind", ["list", "large_list", "fixed_size_list", "tensor"])
def test_every_kind_of_list_column(kind, numbers, tmp_path):
    rows = (ROWS * 100).astype(numbers)
    flat = pa.array(rows.ravel())
    offsets = np.arange(11) * 3
    made = {
        "list": lambda: pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), flat),
        "large_list": lambda: pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), flat),
        "fixed_size_list": lambda: fixed(rows),
        "tensor": lambda: pa.FixedShapeTensorArray.from_numpy_ndarray(rows),
    }[kind]()
    file = write(tmp_path / "file.parquet", {"id": pa.array(range(10)), "e": made}, row_group_size=4)
    vectors = open_vectors(file)
    wanted = torch.from_numpy(rows.astype("int32") if numbers == "uint16" else rows)
    assert vectors.dtype == wanted.dtype
    assert torch.equal(all_rows(vectors), wanted)
    assert torch.equal(vectors.take(torch.tensor([0, 5, 9])), wanted[[0, 5, 9]])
    assert torch.equal(all_rows(vectors.slice(3, 9)), wanted[3:9])


def test_the_column_is_the_only_one_of_floats_or_the_one_named(tmp_path):
    tokens = pa.array([[1, 2]] * 10)
    names = pa.array([["a"]] * 10)
    file = write(tmp_path / "one.parquet", {"tokens": tokens, "names": names, "e.x": fixed(ROWS)})
    assert torch.equal(all_rows(open_vectors(file)), torch.from_numpy(ROWS))
    assert open_vectors(file, column="tokens").n_features == 2
    for column, message in (
        ("token", r"no column 'token' \(did you mean 'tokens'\?\): tokens, names, e.x"),
        ("names", r"column 'names' is list<.*string>, not a list of numbers"),
    ):
        with pytest.raises(DataError, match=message):
            open_vectors(file, column=column)
    several = write(tmp_path / "two.parquet", {"a": fixed(ROWS), "b": fixed(-ROWS)})
    with pytest.raises(DataError, match=r"several columns of vectors, a, b: name one .*column=NAME"):
        open_vectors(several)
    assert torch.equal(all_rows(open_vectors(several, column="b")), -torch.from_numpy(ROWS))
    with pytest.raises(DataError, match=r"no column of vectors .* Its columns: id \(int64\)"):
        open_vectors(write(tmp_path / "none.parquet", {"id": pa.array([1])}))


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ([[1.0, 2.0]] * 6 + [[1.0]], "row 6 of column 'embedding' has 1 values, row 0 has 2"),
        ([[1.0, 2.0]] * 6 + [None], "row 6 of column 'embedding' has null, row 0 has 2"),
        ([[1.0, 2.0]] * 6 + [[1.0, None]], "row 6 of column 'embedding' has a null among its values"),
        ([None, [1.0]], "row 0 of column 'embedding' is null"),
    ],
)
def test_lists_that_are_no_vectors(lists, message, tmp_path):
    file = write(tmp_path / "file.parquet", pa.array(lists, pa.list_(pa.float32())), row_group_size=3)
    with pytest.raises(DataError, match=message):
        all_rows(open_vectors(file))


def test_nothing_in_it(tmp_path):
    empty = write(tmp_path / "empty.parquet", pa.array([], pa.list_(pa.float32())))
    with pytest.raises(DataError, match=r"0 sample\(s\)"):
        open_vectors(empty)
    with pytest.raises(DataError, match=r"0 feature\(s\)"):
        open_vectors(write(tmp_path / "flat.parquet", pa.array([[], []], pa.list_(pa.float32()))))
    for shape, message in (
        ((0, 3), r"0 sample\(s\)"),
        ((3, 0), r"0 feature\(s\)"),
        ((3,), "Reshape your data"),
    ):
        np.save(tmp_path / "array.npy", np.zeros(shape))
        with pytest.raises(DataError, match=f"array.npy .*{message}"):
            open_vectors(tmp_path / "array.npy")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.npy", b"", "a.npy cannot be read as .npy"),
        ("a.npy", b"no array at all", "a.npy cannot be read as .npy"),
        ("a.parquet", b"", "a.parquet cannot be read as parquet"),
        ("a.parquet", b"PAR1 but not really PAR1", "a.parquet cannot be read as parquet"),
        ("a.npz", b"", "read from .npy or .parquet, not '.npz': save its array with numpy.save"),
        ("a.csv", b"", "read from .npy or .parquet, not '.csv': convert it"),
    ],
)
def test_files_that_cannot_be_read(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        open_vectors(tmp_path / name)


def test_other_refusals_of_files(tmp_path):
    with pytest.raises(DataError, match=r"missing.npy: there is no such file or folder"):
        open_vectors(str(tmp_path / "missing.npy"))
    np.save(tmp_path / "a.npy", ROWS)
    with pytest.raises(DataError, match=r"column='e' was asked of .*a.npy, which has none"):
        open_vectors(tmp_path / "a.npy", column="e")
    np.save(tmp_path / "b.npy", np.array([[{}]], dtype=object))
    with pytest.raises(DataError, match=r"b.npy must be numbers, its dtype is object"):
        open_vectors(tmp_path / "b.npy")
    np.save(tmp_path / "c.npy", ROWS.astype(complex))
    with pytest.raises(DataError, match="Complex data not supported"):
        open_vectors(tmp_path / "c.npy")
    whole = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "d.npy").write_bytes(whole[:-8])
    with pytest.raises(DataError, match=r"d.npy cannot be read as .npy"):
        open_vectors(tmp_path / "d.npy")


def test_a_damaged_page_is_found_when_it_is_read(tmp_path):
    file = write(
        tmp_path / "file.parquet", fixed(ROWS), row_group_size=5, compression="zstd", use_dictionary=False
    )
    column = pq.read_metadata(file).row_group(1).column(0)
    content = bytearray(file.read_bytes())
    begin = column.data_page_offset
    content[begin : begin + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    file.write_bytes(content)
    vectors = open_vectors(file)
    assert torch.equal(all_rows(vectors.slice(0, 5)), torch.from_numpy(ROWS[:5]))
    with pytest.raises(DataError, match=r"file.parquet cannot be read as parquet near row"):
        all_rows(vectors)


@pytest.mark.parametrize("suffix", ["npy", "parquet"])
def test_a_file_that_changes_is_noticed(suffix, tmp_path):
    file = tmp_path / f"file.{suffix}"

    def store(rows):
        return np.save(file, rows) if suffix == "npy" else write(file, fixed(rows))

    store(ROWS)
    vectors = open_vectors(file)
    store(ROWS[:7])
    with pytest.raises(DataError, match="has changed since it was opened"):
        all_rows(vectors)
    file.unlink()
    with pytest.raises(DataError, match="has changed since it was opened"):
        vectors.take(torch.tensor([1]))


def test_slices_and_indices_leave_other_row_groups_alone(tmp_path):
    """The other groups are unreadable, and nobody notices."""
    rows = np.arange(300, dtype=np.float32).reshape(100, 3)
    file = write(tmp_path / "file.parquet", fixed(rows), row_group_size=10)
    metadata, content = pq.read_metadata(file), bytearray(file.read_bytes())
    for group in set(range(10)) - {0, 4, 5}:
        column = metadata.row_group(group).column(0)
        begin = min(column.data_page_offset, column.dictionary_page_offset or column.data_page_offset)
        content[begin : begin + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    file.write_bytes(content)
    vectors = open_vectors(file)
    assert torch.equal(all_rows(vectors.slice(41, 60)), torch.from_numpy(rows[41:60]))
    assert torch.equal(all_rows(vectors.slice(40, 43)), torch.from_numpy(rows[40:43]))
    assert torch.equal(vectors.take(torch.tensor([3, 44, 59])), torch.from_numpy(rows[[3, 44, 59]]))
    assert torch.equal(vectors.slice(40, 60).take(torch.tensor([19])), torch.from_numpy(rows[[59]]))
    with pytest.raises(DataError):
        all_rows(vectors)


def test_a_row_group_is_read_no_further_than_it_must(tmp_path):
    """All rows are in one group, whose last page is unreadable; those before it can be had."""
    rows = np.arange(30_000, dtype=np.float32).reshape(-1, 3)
    file = write(
        tmp_path / "file.parquet", fixed(rows), data_page_size=1024, compression="zstd", use_dictionary=False
    )
    column, content = pq.read_metadata(file).row_group(0).column(0), bytearray(file.read_bytes())
    end = column.data_page_offset + column.total_compressed_size
    content[end - 500 : end] = b"\xff" * 500
    file.write_bytes(content)
    vectors = open_vectors(file)
    assert torch.equal(all_rows(vectors.slice(2, 50)), torch.from_numpy(rows[2:50]))
    with pytest.raises(DataError, match=r"file.parquet cannot be read as parquet near row 9,"):
        all_rows(vectors)


def test_folders(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(DataError, match=r"no .npy or .parquet file in this folder"):
        open_vectors(folder)
    (folder / "notes.json").write_text("{}")
    np.save(folder / "b.npy", ROWS[4:].astype(np.float64))
    np.save(folder / "a.npy", ROWS[:4])
    np.save(folder / "c.npy", ROWS[:0])
    vectors = open_vectors(folder)
    assert vectors.dtype == torch.float64
    assert torch.equal(all_rows(vectors), torch.from_numpy(ROWS).double())
    assert vectors.take(torch.tensor([1])).dtype == torch.float64
    np.save(folder / "labels.npy", np.arange(10))
    with pytest.raises(DataError, match=r"labels.npy must be rows of features"):
        open_vectors(folder)
    np.save(folder / "labels.npy", ROWS[:, :2])
    with pytest.raises(DataError, match=r"labels.npy has 2 features, a.npy has 3"):
        open_vectors(folder)
    (folder / "labels.npy").unlink()
    write(folder / "d.parquet", fixed(ROWS))
    with pytest.raises(DataError, match=r"folder mixes a.npy and d.parquet"):
        open_vectors(folder)
    (folder / "d.parquet").unlink()
    (folder / "below").mkdir()
    np.save(folder / "below" / "e.npy", ROWS)
    with pytest.raises(DataError, match=r"folders below it, as .*e.npy"):
        open_vectors(folder)


@pytest.mark.parametrize("suffix", ["npy", "NPY", "Npy", "parquet", "PARQUET"])
def test_suffixes_in_capitals(suffix, tmp_path):
    def store(path, rows):
        if suffix.lower() == "parquet":
            return write(path, fixed(rows))
        with open(path, "wb") as file:  # numpy would add a suffix of its own
            return np.save(file, rows)

    store(tmp_path / f"1.{suffix.lower()}", ROWS[:4])
    store(tmp_path / f"2.{suffix}", ROWS[4:])
    assert torch.equal(all_rows(open_vectors(tmp_path)), torch.from_numpy(ROWS))
    assert torch.equal(all_rows(open_vectors(tmp_path / f"2.{suffix}")), torch.from_numpy(ROWS[4:]))
    (tmp_path / "below").mkdir()
    store(tmp_path / "below" / f"3.{suffix}", ROWS)
    with pytest.raises(DataError, match=r"folders below it, as .*3"):
        open_vectors(tmp_path)


def test_a_mix_is_seen_in_capitals_too(tmp_path):
    np.save(tmp_path / "a.npy", ROWS)
    write(tmp_path / "b.PARQUET", fixed(ROWS))
    with pytest.raises(DataError, match=r"mixes a.npy and b.PARQUET"):
        open_vectors(tmp_path)


@pytest.mark.parametrize("hidden", [".0.parquet", "_0.parquet", ".spark/0.parquet", "_delta_log/0.parquet"])
def test_hidden_names_are_left_out_as_pyarrow_does(hidden, tmp_path):
    (tmp_path / hidden).parent.mkdir(exist_ok=True)
    write(tmp_path / hidden, fixed(ROWS))
    with pytest.raises(
        DataError, match=r"no .npy or .parquet file in this folder; not read: .*begin with . or _"
    ):
        open_vectors(tmp_path)
    write(tmp_path / "1.parquet", fixed(ROWS[:3]))
    write(tmp_path / "2_.parquet", fixed(ROWS[3:]))
    rows = all_rows(open_vectors(tmp_path))
    assert torch.equal(rows, torch.from_numpy(ROWS))
    assert len(pa.dataset.dataset(tmp_path).to_table()) == len(rows)
    assert len(open_vectors(tmp_path / hidden)) == 10  # who names it means it


@pytest.mark.parametrize("column", [None, "embedding"])
def test_an_empty_part_may_have_no_type(column, tmp_path):
    """As pandas writes a frame without rows: it cannot know what the lists would have held."""
    write(tmp_path / "0.parquet", {"id": pa.array([], pa.null()), "embedding": pa.array([], pa.null())})
    with pytest.raises(DataError, match=r"0 sample\(s\)"):
        open_vectors(tmp_path / "0.parquet", column=column)
    write(tmp_path / "1.parquet", {"id": pa.array(["x"] * 10), "embedding": fixed(ROWS)})
    assert torch.equal(all_rows(open_vectors(tmp_path, column=column)), torch.from_numpy(ROWS))
    write(tmp_path / "2.parquet", {"id": pa.array(["x"]), "embedding": pa.array([None], pa.null())})
    with pytest.raises(DataError, match=r"2.parquet"):  # rows that are there must be vectors
        open_vectors(tmp_path, column=column)


def test_an_empty_frame_of_pandas(tmp_path):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"embedding": list(ROWS)})
    frame[:0].to_parquet(tmp_path / "0.parquet")
    frame.to_parquet(tmp_path / "1.parquet")
    assert torch.equal(all_rows(open_vectors(tmp_path)), torch.from_numpy(ROWS))


def test_which_files_hold_the_rows(tmp_path):
    for name, rows in (("a", ROWS[:4]), ("b", ROWS[:0]), ("c", ROWS[4:])):
        np.save(tmp_path / f"{name}.npy", rows)
    assert open_vectors(tmp_path).files == [tmp_path / "a.npy", tmp_path / "c.npy"]
    assert open_vectors(tmp_path / "a.npy").files == [tmp_path / "a.npy"]
    assert list(open_vectors(ROWS).files) == []


def test_a_folder_without_rows_or_features(tmp_path):
    np.save(tmp_path / "a.npy", ROWS[:0])
    with pytest.raises(DataError, match=r"0 sample\(s\) in 1 files"):
        open_vectors(tmp_path)
    np.save(tmp_path / "a.npy", ROWS[:, :0])
    with pytest.raises(DataError, match=r"a.npy has 0 feature\(s\)"):
        open_vectors(tmp_path)


def test_a_column_is_asked_of_every_file_of_a_folder(tmp_path):
    for name, rows in (("a", ROWS[:5]), ("b", ROWS[5:])):
        write(tmp_path / f"{name}.parquet", {"x": fixed(rows), "y": fixed(-rows)})
    assert torch.equal(all_rows(open_vectors(tmp_path, column="y")), -torch.from_numpy(ROWS))


def test_more_files_than_can_be_open_at_once(tmp_path):
    for number in range(80):
        np.save(tmp_path / f"{number:03}.npy", ROWS[:1] + number)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (60, hard))
        rows = all_rows(open_vectors(tmp_path))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert (rows[:, 0] - ROWS[0, 0]).round().tolist() == list(range(80))


MEASURE = """
import sys
from coke.vectors import open_vectors
def anonymous():
    return next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith("RssAnon"))
vectors = open_vectors(sys.argv[1])
next(iter(vectors.slice(0, 10).blocks(10)))
before, most = anonymous(), 0
for _, block in vectors.blocks(4096):
    block.sum()
    most = max(most, anonymous())
print(most - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads Linux's /proc")
@pytest.mark.parametrize("suffix", ["npy", "parquet"])
def test_a_file_is_never_held_whole(suffix, tmp_path):
    """64 MiB of values, all in one row group where it is parquet: a pass takes a quarter of that at most."""
    rows = np.random.default_rng(0).normal(size=(262_144, 64)).astype(np.float32)
    file = tmp_path / f"file.{suffix}"
    if suffix == "npy":
        np.save(file, rows)
    else:
        write(file, fixed(rows), row_group_size=len(rows))
    command = [sys.executable, "-c", MEASURE, str(file)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert float(shown) < 16, f"{shown} MiB"
