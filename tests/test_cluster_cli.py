"""`coke cluster` and `coke assign` as a person meets them: files checked by other means than those that wrote them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import load_file, save_file
from scipy.optimize import linear_sum_assignment

import coke
from coke.bounded.command import check_outputs
from coke.cli import main
from coke.errors import ConfigError

N, D, K = 600, 6, 12


def blobs(n_rows: int, seed: int = 0) -> np.ndarray:
    """Around K points, some of them much more often than others."""
    random = np.random.default_rng(7)
    points, shares = 4 * random.normal(size=(K, D)), random.dirichlet(np.ones(K))
    random = np.random.default_rng(seed)
    rows = points[random.choice(K, n_rows, p=shares)] + random.normal(size=(n_rows, D))
    return rows.astype(np.float32)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with vectors."""
    monkeypatch.chdir(tmp_path)
    np.save("rows.npy", blobs(N))
    return tmp_path


def run(*words: Any) -> pa.Table:
    """What a command that succeeds writes to --out."""
    words = tuple(map(str, words))
    assert main(list(words)) == 0
    return pq.read_table(words[words.index("--out") + 1])


def refused(capsys: pytest.CaptureFixture[str], *words: Any) -> str:
    """The one line on stderr of a command that is refused with exit code 1."""
    assert main(list(map(str, words))) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("coke: ")
    return line


def distances(rows: np.ndarray, centers: np.ndarray, metric: str) -> np.ndarray:
    """[N, K], float64, from the definition."""
    rows, centers = rows.astype(np.float64), centers.astype(np.float64)
    if metric == "euclidean":
        return np.linalg.norm(rows[:, None] - centers[None], axis=-1)
    return 1 - rows @ centers.T / (np.linalg.norm(rows, axis=1)[:, None] * np.linalg.norm(centers, axis=1))


def check_places(table: pa.Table, rows: np.ndarray, centers: np.ndarray, metric: str = "euclidean") -> None:
    """Every column against its definition."""
    columns = {name: table[name].to_numpy() for name in table.column_names}
    assert columns["row"].tolist() == list(range(len(rows)))
    all_of_them = distances(rows, centers, metric)
    each = np.arange(len(rows))
    own = all_of_them[each, columns["cluster"]]
    np.testing.assert_allclose(columns["distance"], own, rtol=1e-5, atol=1e-7)
    all_of_them[each, columns["cluster"]] = np.inf
    np.testing.assert_array_equal(columns["second"], all_of_them.argmin(1))
    np.testing.assert_allclose(columns["margin"], all_of_them.min(1) - own, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_sizes_hold_and_places_are_right(data: Path, metric: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--k", K, "--min-size", 30, "--max-size", 80, "--metric", metric, "--out", "c.parquet")
    table = run("cluster", "rows.npy", *words)
    sizes = np.bincount(table["cluster"].to_numpy(), minlength=K)
    assert sizes.min() >= 30
    assert sizes.max() <= 80
    tensors = load_file("c.safetensors")
    assert tensors["counts_0"].tolist() == sizes.tolist()
    check_places(table, np.load("rows.npy"), tensors["centers_0"], metric)
    printed = capsys.readouterr().out
    assert "\x1b" not in printed  # plain lines in a pipe
    moved = int((table["margin"].to_numpy() < 0).sum())
    assert moved > 0  # or the bounds were no test
    for expected in (
        f"rows.npy: 600 rows of 6 features, float32; 12 clusters, {metric}",
        f"sizes       smallest {sizes.min()}  median {np.median(sizes):g}  largest {sizes.max()}",
        "bounds      at least 30, at most 80, and they hold",
        "gap         ",
        "inertia     ",
        "iterations  ",
        f"moved       {moved} rows",
        "written     c.parquet, c.safetensors",
    ):
        assert expected in printed, printed
    assert sorted(os.listdir(data)) == ["c.parquet", "c.safetensors", "rows.npy"]


def test_every_kind_of_data_gives_the_same(data: Path) -> None:
    rows = np.load("rows.npy")
    lists = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), D)
    pq.write_table(pa.table({"name": ["x"] * N, "vector": lists}), "rows.parquet", row_group_size=100)
    pq.write_table(pa.table({"vector": lists, "other": lists}), "two.parquet")
    (data / "parts").mkdir()
    np.save("parts/0.npy", rows[:250])
    np.save("parts/1.npy", rows[250:])
    wanted = run("cluster", "rows.npy", "--k", K, "--min-size", 30, "--out", "npy.parquet")
    for name, words in (("rows.parquet", ()), ("parts", ()), ("two.parquet", ("--column", "vector"))):
        found = run("cluster", name, *words, "--k", K, "--min-size", 30, "--out", f"of {name}.parquet")
        assert found.equals(wanted), name


def test_same_seed_same_files(data: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        run(
            "cluster",
            "rows.npy",
            "--k",
            K,
            "--max-size-ratio",
            1.5,
            "--seed",
            seed,
            "--out",
            f"{name}.parquet",
        )
    a, b, c = (Path(f"{name}.parquet").read_bytes() for name in "abc")
    assert a == b
    assert a != c
    assert Path("a.safetensors").read_bytes() == Path("b.safetensors").read_bytes()


def test_ratios_and_plain_k_means(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    balanced = run(
        *("cluster", "rows.npy", "--k", 7, "--min-size-ratio", 1, "--max-size-ratio", 1, "--out", "b.parquet")
    )
    assert sorted(np.bincount(balanced["cluster"].to_numpy())) == [85] * 2 + [86] * 5
    capsys.readouterr()
    plain = run("cluster", "rows.npy", "--k", 7, "--init", "random", "--n-init", 3, "--out", "p.parquet")
    assert (plain["margin"].to_numpy() >= 0).all()
    printed = capsys.readouterr().out
    assert "bounds      none" in printed
    assert "out of their nearest" not in printed


def test_one_cluster(data: Path) -> None:
    table = run("cluster", "rows.npy", "--k", 1, "--out", "c.parquet")
    assert table["second"].null_count == table["margin"].null_count == N
    center = load_file("c.safetensors")["centers_0"]
    np.testing.assert_allclose(center[0], np.load("rows.npy").mean(0), atol=1e-5)


def test_sizes_of_each_cluster(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = np.array([[0, 60]] * 6 + [[40, 70]] * 6)
    np.savetxt("sizes.csv", wanted, fmt="%d", delimiter=",")
    table = run("cluster", "rows.npy", "--k", K, "--sizes", "sizes.csv", "--out", "c.parquet")
    sizes = np.bincount(table["cluster"].to_numpy(), minlength=K)
    assert (sizes >= wanted[:, 0]).all()
    assert (sizes <= wanted[:, 1]).all()
    assert "at least 0 ... 40, at most 60 ... 70, and they hold" in capsys.readouterr().out
    line = refused(
        capsys,
        *(
            "cluster",
            "rows.npy",
            "--k",
            K,
            "--sizes",
            "sizes.csv",
            "--max-size-ratio",
            2,
            "--out",
            "d.parquet",
        ),
    )
    assert "sizes.csv holds max_size of each cluster: leave out --max-size-ratio" in line
    line = refused(capsys, "cluster", "rows.npy", "--k", 5, "--sizes", "sizes.csv", "--out", "d.parquet")
    assert "one for each of 5 clusters" in line


def test_assign_to_the_nearest_and_within_sizes(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("cluster", "rows.npy", "--k", K, "--min-size", 30, "--max-size", 80, "--out", "c.parquet")
    new, centers = blobs(200, seed=5), load_file("c.safetensors")["centers_0"]
    np.save("new.npy", new)
    nearest = run("assign", "c.safetensors", "new.npy", "--out", "nearest.parquet")
    assert nearest["cluster"].to_pylist() == distances(new, centers, "euclidean").argmin(1).tolist()
    check_places(nearest, new, centers)
    capsys.readouterr()
    words = ("--min-size", 10, "--max-size", 20, "--out", "within.parquet")
    within = run("assign", "c.safetensors", "new.npy", *words)
    sizes = np.bincount(within["cluster"].to_numpy(), minlength=K)
    assert (sizes >= 10).all()
    assert (sizes <= 20).all()
    check_places(within, new, centers)
    printed = capsys.readouterr().out
    for expected in (
        "new.npy: 200 rows of 6 features, float32; 12 clusters of c.safetensors, euclidean",
        "bounds    at least 10, at most 20, and they hold",
        "gap       ",
        "written   within.parquet",
    ):
        assert expected in printed, printed
    assert not Path("within.safetensors").exists()


def test_python_goes_on_from_the_file(data: Path) -> None:
    first = run("cluster", "rows.npy", "--k", K, "--min-size", 30, "--out", "c.parquet")["cluster"].to_numpy()
    km, rows, new = coke.load_clustering("c.safetensors"), np.load("rows.npy"), blobs(200, seed=5)
    np.save("new.npy", new)
    nearest = run("assign", "c.safetensors", "new.npy", "--out", "n.parquet")
    assert km.predict(new).tolist() == nearest["cluster"].to_pylist()
    assert km.get_feature_names_out()[-1] == f"constrainedkmeans{K - 1}"
    assert np.bincount(km.assign(new, min_size=12), minlength=K).min() >= 12
    streamed = coke.load_clustering("c.safetensors").partial_fit(new)  # goes on from what the file counts
    assert streamed.counts_.sum() == N + len(new)
    again = km.set_params(min_size=30).fit(rows)  # from where the file stands
    assert (again.labels_ == first).mean() > 0.9
    assert again.counts_.min() >= 30
    with pytest.raises(coke.CokeError, match="no such file"):
        coke.load_clustering("elsewhere.safetensors")


def test_assign_takes_the_metric_of_the_file(data: Path) -> None:
    run("cluster", "rows.npy", "--k", K, "--metric", "cosine", "--out", "c.parquet")
    centers = load_file("c.safetensors")["centers_0"]
    again = run("assign", "c.safetensors", "rows.npy", "--out", "again.parquet")
    about = json.loads(again.schema.metadata[b"coke clustering"])
    assert (about["metric"], about["n_rows"], about["centers"]) == ("cosine", N, "c.safetensors")
    check_places(again, np.load("rows.npy"), centers, "cosine")


def test_start_keeps_the_numbers(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Data that grows: no renumbering would agree better with the numbers that rows had."""
    words = ("--min-size", 10, "--max-size", 150)
    best = ("--n-init", 8, "--out", "first.parquet")  # or the next fit would go on to a better optimum
    first = run("cluster", "rows.npy", "--k", K, *words, *best)["cluster"].to_numpy()
    np.save("grown.npy", np.concatenate([np.load("rows.npy"), blobs(60, seed=9)]))
    start = ("--start", "first.safetensors")
    grown = run("cluster", "grown.npy", *start, *words, "--out", "grown.parquet")["cluster"].to_numpy()
    sizes = np.bincount(grown, minlength=K)
    assert (sizes >= 10).all()
    assert (sizes <= 150).all()
    both = np.zeros((K, K), int)
    np.add.at(both, (first, grown[:N]), 1)
    assert np.trace(both) == both[linear_sum_assignment(both, maximize=True)].sum()
    assert np.trace(both) > 0.9 * N
    run("cluster", "grown.npy", *start, "--k", K, "--metric", "euclidean", "--out", "again.parquet")
    for more, expected in (
        (("--k", 5), "--k 5 does not go with --start first.safetensors, which has 12"),
        (
            ("--metric", "cosine"),
            "--metric cosine does not go with --start first.safetensors, which has euclidean",
        ),
        (("--init", "random"), "--init and --start both say where to begin"),
    ):
        line = refused(capsys, "cluster", "grown.npy", *start, *more, "--out", "never.parquet")
        assert expected in line
    np.save("narrow.npy", np.zeros((50, 4)))
    for verb in (("cluster", "narrow.npy", *start), ("assign", "first.safetensors", "narrow.npy")):
        line = refused(capsys, *verb, "--out", "never.parquet")
        assert "narrow.npy has 4 features, the centers of first.safetensors have 6" in line


BAD = [
    (
        ["rows.npy", "--k", "20", "--min-size", "60"],
        "600 rows cannot fill 20 clusters of at least 60: that takes",
    ),
    (
        ["rows.npy", "--k", "20", "--min-size", "60"],
        "1,200, 600 too many; at most min_size=30",
    ),
    (["rows.npy", "--k", "3", "--max-size", "100"], "do not fit into 3 clusters of at most 100"),
    (
        ["rows.npy", "--k", "3", "--min-size", "5", "--min-size-ratio", "0.1"],
        "min_size and min_size_ratio both",
    ),
    (["rows.npy", "--k", "3", "--min-size-ratio", "1.5"], "min_size_ratio must lie in [0, 1], got 1.5"),
    (["rows.npy", "--k", "0"], "n_clusters must be a whole number, at least 1, got 0"),
    (["rows.npy", "--k", "601"], "n_clusters=601"),
    (["rows.npy"], "--k is missing"),
    (["rows.npy", "--k", "3", "--seed", "-1"], "--seed must lie in"),
    (["rows.npy", "--k", "3", "--max-iter", "0"], "'max_iter' parameter of ConstrainedKMeans must be"),
    (["rows.npy", "--k", "3", "--tol", "-1"], "'tol' parameter of ConstrainedKMeans must be"),
    (["rows.npy", "--k", "3", "--n-init", "0"], "'n_init' parameter of ConstrainedKMeans must be"),
    (["rows.npy", "--k", "3", "--device", "abacus"], "'abacus'"),
    (["rows.npy", "--k", "3", "--column", "x"], "only parquet does"),
    (["rows.npy", "--k", "3", "--start", "no.safetensors"], "no.safetensors: there is no such file"),
    (["rows.npy", "--k", "3", "--start", "rows.npy"], "cannot be read as safetensors"),
    (["rows.npy", "--k", "3", "--sizes", "no.csv"], "no.csv: there is no such file"),
    (["nothing.npy", "--k", "3"], "nothing.npy: there is no such file or folder"),
    (["rows.csv", "--k", "3"], "vectors are read from .npy or .parquet"),
    (["flat.npy", "--k", "3"], "Reshape your data"),
    (["words.npy", "--k", "3"], "its dtype is <U1"),
    (["nan.npy", "--k", "3"], "contains NaN: row 17, column 2"),
    (["infinite.npy", "--k", "3"], "row 17, column 2"),
    (["zero.npy", "--k", "3", "--metric", "cosine"], "row 17 of"),
]


@pytest.mark.parametrize(("words", "expected"), BAD)
def test_refusals_are_one_line(
    words: list[str], expected: str, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And nothing is written."""
    Path("rows.csv").touch()
    np.save("flat.npy", np.zeros(5))
    np.save("words.npy", np.array([["a", "b"]]))
    for name, value in (("nan", np.nan), ("infinite", np.inf), ("zero", 0.0)):
        rows = np.ones((40, 3))
        rows[17] = rows[17] * 0 if name == "zero" else rows[17]
        rows[17, 2] = value
        np.save(f"{name}.npy", rows)
    before = sorted(os.listdir(data))
    assert expected in refused(capsys, "cluster", *words, "--out", "c.parquet")
    assert sorted(os.listdir(data)) == before


def test_refusals_of_readers_are_one_line_too(
    data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may raise a TypeError, or meet the operating system."""
    for error in (TypeError("Sparse data is not supported"), PermissionError(13, "Permission denied")):

        def read(*arguments: Any, error: Exception = error, **keys: Any) -> None:
            raise error

        monkeypatch.setattr("coke.bounded.processes.open_vectors", read)
        assert str(error) in refused(capsys, "cluster", "rows.npy", "--k", 3, "--out", "c.parquet")


def test_outputs_are_checked_before_data_is_read(
    data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*arguments: Any, **keys: Any) -> None:
        raise AssertionError("data were read")

    monkeypatch.setattr("coke.bounded.processes.open_vectors", read)
    Path("there.parquet").touch()
    Path("there.safetensors").touch()
    (data / "folder").mkdir()
    for words, expected in (
        (["--out", "there.parquet"], "--out there.parquet: it exists: pass --overwrite"),
        (
            ["--out", "new.parquet", "--centers", "there.safetensors"],
            "--centers there.safetensors: it exists",
        ),
        (["--out", "c.csv"], "let its name end in .parquet"),
        (["--out", "c.parquet", "--centers", "c.npy"], "let its name end in .safetensors"),
        (["--out", "nowhere/c.parquet"], "there is no folder nowhere"),
        (["--out", "rows.npy/c.parquet"], "there is no folder rows.npy"),
    ):
        assert expected in refused(capsys, "cluster", "rows.npy", "--k", 3, *words)
    (data / "folder" / "below").mkdir()
    for out in ("folder/c.parquet", "folder/below/c.parquet"):
        line = refused(capsys, "cluster", "folder", "--k", 3, "--out", out)
        assert "would be read as data the next time" in line
    same = refused(capsys, "cluster", "there.parquet", "--k", 3, "--out", "there.parquet", "--overwrite")
    assert "is the data itself" in same
    assert "exists" in refused(capsys, "assign", "there.safetensors", "rows.npy", "--out", "there.parquet")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_device_that_is_not_there(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, "cluster", "rows.npy", "--k", 3, "--device", "cuda", "--out", "c.parquet")
    assert "device='cuda' cannot be used here" in line


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu(data: Path) -> None:
    words = ("--min-size", 30, "--max-size", 80, "--device", "cuda", "--out", "c.parquet")
    table = run("cluster", "rows.npy", "--k", K, *words)
    sizes = np.bincount(table["cluster"].to_numpy(), minlength=K)
    assert sizes.min() >= 30
    assert sizes.max() <= 80
    check_places(table, np.load("rows.npy"), load_file("c.safetensors")["centers_0"])


def test_overwrite(data: Path) -> None:
    Path("c.parquet").write_text("old")
    Path("mine.safetensors").write_text("old")
    words = (
        "cluster",
        "rows.npy",
        "--k",
        3,
        "--out",
        "c.parquet",
        "--centers",
        "mine.safetensors",
        "--overwrite",
    )
    assert len(run(*words)) == N
    assert load_file("mine.safetensors")["centers_0"].shape == (3, D)
    assert len(run("assign", "mine.safetensors", "rows.npy", "--out", "c.parquet", "--overwrite")) == N
    assert not Path("c.safetensors").exists()


@pytest.mark.parametrize(("number", "code"), [("SIGKILL", -9), ("SIGTERM", 143)])
def test_stopped_while_it_writes(data: Path, number: str, code: int) -> None:
    """With the first block in the temporary file: what was there before is still there, whole."""
    Path("c.parquet").write_text("from before")
    program = """
import os, signal, sys
import pyarrow.parquet as pq
from coke.cli import main
whole = pq.ParquetWriter.write_table
def write_table(*arguments, **keys):
    whole(*arguments, **keys)
    os.kill(os.getpid(), getattr(signal, sys.argv[-1]))
pq.ParquetWriter.write_table = write_table
main(sys.argv[1:-1])
"""
    words = ["cluster", "rows.npy", "--k", "3", "--out", "c.parquet", "--overwrite"]
    command = [sys.executable, "-c", program, *words, number]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    left = [name for name in os.listdir(data) if name.endswith(".tmp")]
    if number == "SIGTERM":
        assert (done.stderr, left) == ("coke: terminated\n", [])
    assert Path("c.parquet").read_text() == "from before"
    assert not Path("c.safetensors").exists()


def test_disk_that_is_full(
    data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **keys: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("coke.atomic.os.fsync", fail)
    line = refused(capsys, "cluster", "rows.npy", "--k", 3, "--out", "c.parquet")
    assert "c.parquet cannot be written: [Errno 28] No space left on device" in line
    assert sorted(os.listdir(data)) == ["rows.npy"]


def test_both_files_or_neither(data: Path) -> None:
    """The disk is full after the centers, before the rows are all there."""
    words = ["cluster", "rows.npy", "--k", "3", "--out", "c.parquet", "--overwrite"]
    run(*words)
    before = Path("c.parquet").read_bytes(), Path("c.safetensors").read_bytes()
    code = f"""
import resource, sys
from coke.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, ({len(before[1]) + 200}, -1))
sys.exit(main(sys.argv[1:]))
"""
    done = subprocess.run([sys.executable, "-c", code, *words, "--seed", "5"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "c.parquet cannot be written: [Errno 27] File too large" in done.stderr
    assert (Path("c.parquet").read_bytes(), Path("c.safetensors").read_bytes()) == before
    assert sorted(os.listdir(data)) == ["c.parquet", "c.safetensors", "rows.npy"]


def test_bar_on_a_terminal(
    data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # what rich takes for a terminal
    run("cluster", "rows.npy", "--k", 3, "--out", "c.parquet")
    printed = capsys.readouterr().out
    assert "pass 1" in printed
    assert "100%" in printed
    assert "\x1b" in printed


def test_duplicates_are_noted(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Fewer distinct rows than clusters: a result, and a note rather than a warning with its source line."""
    np.save("same.npy", np.ones((50, 3)))
    table = run("cluster", "same.npy", "--k", 4, "--out", "c.parquet")
    assert (table["distance"].to_numpy() == 0).all()
    printed = capsys.readouterr()
    assert "note: " in printed.out
    assert printed.err == ""
    balanced = run("cluster", "same.npy", "--k", 4, "--min-size", 12, "--out", "d.parquet")
    assert np.bincount(balanced["cluster"].to_numpy()).min() >= 12


@pytest.mark.parametrize("verb", ["cluster", "assign"])
def test_help_loads_nothing_heavy(verb: str) -> None:
    code = (
        f"import sys\nfrom coke.cli import main\n"
        f"try: main(['{verb}', '--help'])\nexcept SystemExit as stop: print('code', stop.code)\n"
        "print(sorted({'torch', 'numpy', 'sklearn', 'pyarrow', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-2:] == ["code 0", "[]"]
    assert "--min-size-ratio" in done.stdout


@pytest.mark.parametrize(
    "words",
    [
        ["cluster"],
        ["cluster", "x.npy", "--k", "3"],
        ["assign", "x.npy"],
        ["cluster", "--k", "three", "x.npy"],
    ],
)
def test_malformed_command_lines(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    assert "usage: coke" in capsys.readouterr().err


def table_of(rows: np.ndarray, **columns: Any) -> pa.Table:
    lists = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), rows.shape[1])
    return pa.table({"vector": lists, **columns})


IDS = {
    "text": pa.array([f"img {i}" for i in range(N)]),
    "number": pa.array(range(N), pa.uint16()),
    "when": pa.array(range(N), pa.timestamp("ms", "UTC")),
    "some": pa.array([i if i % 3 else None for i in range(N)], pa.int64()),
    "kind": pa.array(["ab"[i % 2] for i in range(N)]).dictionary_encode(),
}


@pytest.mark.parametrize("column", IDS)
def test_a_column_of_ids_is_carried_over(data: Path, column: str) -> None:
    """Type, name and order, from a file and from a folder, by both verbs; and all else is as without."""
    rows, cut = np.load("rows.npy"), 217
    whole = table_of(rows, **IDS)
    pq.write_table(whole, "rows.parquet", row_group_size=100)
    (data / "parts").mkdir()
    pq.write_table(whole.slice(0, cut), "parts/0.parquet")
    pq.write_table(whole.slice(0, 0), "parts/1.parquet")
    pq.write_table(whole.slice(cut), "parts/2.parquet", row_group_size=50)
    plain = run("cluster", "rows.parquet", "--k", K, "--min-size", 30, "--out", "plain.parquet")
    for name in ("rows.parquet", "parts"):
        words = ("--id", column, "--out", f"of {name}.parquet")
        for verb in (("cluster", name, "--k", K, "--min-size", 30), ("assign", "plain.safetensors", name)):
            found = run(*verb, *words, "--overwrite")
            assert found.column_names == ["row", column, "cluster", "distance", "margin", "second"]
            assert found[column].type == whole[column].type
            assert found[column].to_pylist() == whole[column].to_pylist()
            if verb[0] == "cluster":
                assert found.drop_columns([column]).equals(plain)


def test_ids_that_cannot_be_carried_over(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = np.load("rows.npy")
    pq.write_table(table_of(rows, name=IDS["text"], cluster=IDS["number"]), "rows.parquet")
    (data / "parts").mkdir()
    pq.write_table(table_of(rows, name=IDS["text"]), "parts/0.parquet")
    pq.write_table(table_of(rows, name=IDS["number"]), "parts/1.parquet")
    pq.write_table(table_of(rows), "parts/2.parquet")
    for name, column, expected in (
        ("rows.parquet", "nmae", "rows.parquet has no column 'nmae' (did you mean 'name'?): vector, name"),
        ("rows.npy", "name", "column 'name' was asked of rows.npy, which has none: only parquet does"),
        ("rows.parquet", "cluster", "--id cluster: --out has its own column of that name"),
        ("rows.parquet", "row", "--id row: --out has its own column of that name"),
        ("parts", "name", "parts/2.parquet has no column 'name'"),
    ):
        line = refused(capsys, "cluster", name, "--k", 3, "--id", column, "--out", "c.parquet")
        assert expected in line
    Path("parts/2.parquet").unlink()
    line = refused(capsys, "cluster", "parts", "--k", 3, "--id", "name", "--out", "c.parquet")
    assert (
        "column 'name' is string in 0.parquet, uint16 in 1.parquet: all files must have the same type" in line
    )
    assert not Path("c.parquet").exists()


def test_heads(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a file with two: each is assigned to, and gone on from, by its number."""
    rows, random = np.load("rows.npy"), np.random.default_rng(0)
    tensors = {}
    for head in (0, 1):
        tensors[f"centers_{head}"] = random.normal(size=(3 + head, D))
        tensors |= {f"duals_{head}": np.zeros(3 + head), f"counts_{head}": np.ones(3 + head, np.int64)}
    about = {"coke clustering": json.dumps({"format_version": 2, "metric": "cosine"})}
    save_file(tensors, "two.safetensors", about)
    for head, words in ((0, ()), (0, ("--head", 0)), (1, ("--head", 1))):
        found = run("assign", "two.safetensors", "rows.npy", *words, "--out", "c.parquet", "--overwrite")
        check_places(found, rows, tensors[f"centers_{head}"], "cosine")
        assert (
            found["cluster"].to_pylist()
            == distances(rows, tensors[f"centers_{head}"], "cosine").argmin(1).tolist()
        )
    run("cluster", "rows.npy", "--start", "two.safetensors", "--head", 1, "--out", "d.parquet")
    assert load_file("d.safetensors")["centers_0"].shape == (4, D)
    line = refused(capsys, "assign", "two.safetensors", "rows.npy", "--head", 2, "--out", "e.parquet")
    assert "two.safetensors has no head 2: it has 2, numbered from 0" in line


def test_what_the_table_looks_like(data: Path) -> None:
    run("cluster", "rows.npy", "--k", K, "--max-size", 80, "--seed", 2, "--out", "c.parquet")
    schema = pq.read_schema("c.parquet")
    assert schema.names == ["row", "cluster", "distance", "margin", "second"]
    assert [str(field.type) for field in schema] == ["int64", "int32", "float", "float", "int32"]
    about = json.loads(schema.metadata[b"coke clustering"])
    assert {
        name: about[name] for name in ("format_version", "coke_version", "metric", "max_size", "seed")
    } == {
        "format_version": 2,
        "coke_version": coke.__version__,
        "metric": "euclidean",
        "max_size": 80,
        "seed": 2,
    }
    assert about["lower_bound"] <= about["inertia"]


@pytest.mark.parametrize("kind", ["npy", "parquet"])
def test_many_row_groups_are_one_table(data: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pq.write_table(table_of(np.load("rows.npy"), name=IDS["text"]), "rows.parquet")
    words = ("--k", 5, *(("--id", "name") if kind == "parquet" else ()))
    whole = run("cluster", f"rows.{kind}", *words, "--out", "whole.parquet")
    monkeypatch.setattr("coke.bounded.command._ROW_GROUP", 70)
    monkeypatch.setattr("coke.vectors.files._COLUMN_ROWS", 70)
    cut = run("cluster", f"rows.{kind}", *words, "--out", "cut.parquet")
    assert pq.read_metadata("cut.parquet").num_row_groups == 9
    assert cut.equals(whole)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("folder.parquet", "is a folder"), (os.fsdecode(b"o\xff.parquet"), "its name is not UTF-8")],
)
def test_outputs_that_cannot_be_named_so(
    data: Path, name: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (data / "folder.parquet").mkdir()
    with pytest.raises(ConfigError, match=expected):
        check_outputs(
            Namespace(data=data / "rows.npy", out=Path(name), centers=None, overwrite=False, id=None)
        )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_folder_without_permission(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (data / "locked").mkdir(mode=0o500)
    line = refused(capsys, "cluster", "rows.npy", "--k", 3, "--out", "locked/c.parquet")
    assert "nothing can be written to locked" in line


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_between_its_two_files(data: Path) -> None:
    """At every rename and removal: rows of one fit never lie beside centers of another, and leftovers go."""
    program = """
import json, os, signal
from argparse import Namespace
from pathlib import Path
import numpy as np, pyarrow.parquet as pq, torch
from safetensors import safe_open

from coke.bounded.command import COLUMNS, write
from coke.bounded.files import estimator_of
from coke.vectors import open_vectors

vectors = open_vectors(np.load("rows.npy"))
found = np.zeros(len(np.load("rows.npy")), [(name, kind) for name, kind in COLUMNS.items() if name != "row"])
options = Namespace(out=Path("c.parquet"), centers=Path("c.safetensors"))

def put(fit):
    km = estimator_of(torch.full((3, 6), float(fit)), torch.zeros(3), torch.ones(3).long(), metric="cosine")
    write(options, km, {"seed": fit}, vectors, None, found)

def seeds():
    about = []
    if options.out.exists():
        about.append(pq.read_schema(options.out).metadata[b"coke clustering"])
    if options.centers.exists():
        with safe_open(options.centers, "pt") as file:
            about.append(file.metadata()["coke clustering"])
    return [json.loads(text)["seed"] for text in about]

def killing(call, moment):
    def called(*arguments, **keys):
        global left
        left -= 1
        if left < 0 and moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        done = call(*arguments, **keys)
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return done
    return called

outcomes, killed, number = [], True, 0
while killed:
    killed = False
    for moment in ("before", "after"):
        put(1)
        child = os.fork()
        if child == 0:
            left = number
            os.replace = killing(os.replace, moment)
            Path.unlink = killing(Path.unlink, moment)
            put(2)
            os._exit(0)
        killed |= os.WIFSIGNALED(os.waitpid(child, 0)[1])
        outcomes.append(seeds())
    number += 1
print(json.dumps([outcomes, sorted(os.listdir())]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    outcomes, files = json.loads(done.stdout)
    assert len(outcomes) > 8
    assert [1, 1] in outcomes
    assert [2, 2] in outcomes
    assert all(len(set(seeds)) <= 1 for seeds in outcomes), outcomes
    assert files == ["c.parquet", "c.safetensors", "rows.npy"]
