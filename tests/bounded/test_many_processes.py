"""Several processes write what one does, and what one of them cannot do is refused by all, without waiting."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch.multiprocessing as mp
from safetensors.numpy import load_file

import cluster_processes
from coke.cli import main

pytestmark = pytest.mark.slow
N, D, K = 601, 5, 7  # neither two nor four processes share that evenly
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


def blobs(n_rows: int = N, seed: int = 0) -> np.ndarray:
    """Around K points, some of them much more often than others."""
    random = np.random.default_rng(seed)
    points, shares = 4 * np.random.default_rng(7).normal(size=(K, D)), np.arange(1, K + 1) / 28
    rows = points[random.choice(K, n_rows, p=shares)] + random.normal(size=(n_rows, D))
    return rows.astype(np.float32)


def processes(folder: Path, n_processes: int, *commands: list[str], apart: bool = False) -> list[list[tuple]]:
    """For each command what every process came to: (exit code, stderr)."""
    mp.start_processes(
        cluster_processes.run,
        args=(n_processes, folder, list(commands), apart),
        nprocs=n_processes,
        start_method="spawn",
    )
    ends = [json.loads((folder / f"ends {rank}.json").read_text()) for rank in range(n_processes)]
    return [[tuple(end) for end in command] for command in zip(*ends, strict=True)]


def torchrun(folder: Path, n_processes: int, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*TORCHRUN, str(n_processes), *words]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=180, check=False
    )


def check_same(folder: Path, ours: str, theirs: str) -> None:
    """All columns of the tables, and centers, duals and counts where they are, to the last bit."""
    tables = [pq.read_table(folder / f"{name}.parquet") for name in (ours, theirs)]
    assert tables[0].equals(tables[1])
    files = [folder / f"{name}.safetensors" for name in (ours, theirs)]
    assert files[0].exists() == files[1].exists()
    if files[0].exists():
        tensors = [load_file(file) for file in files]
        assert tensors[0].keys() == tensors[1].keys() == {"centers_0", "duals_0", "counts_0"}
        for name, values in tensors[0].items():
            np.testing.assert_array_equal(values, tensors[1][name])


SIZES = ["--min-size", "60", "--max-size", "110"]


def test_four_processes_of_torchrun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("rows.npy", blobs())
    words = ["cluster", "rows.npy", "--k", str(K), *SIZES]
    done = torchrun(tmp_path, 4, "-m", "coke", *words, "--out", "four.parquet")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "601 rows of 5 features, float32, on 4 processes; 7 clusters, euclidean" in done.stdout
    assert done.stdout.count("written ") == 1  # one speaks for all
    assert main([*words, "--out", "one.parquet"]) == 0
    check_same(tmp_path, "four", "one")
    sizes = np.bincount(pq.read_table("four.parquet")["cluster"].to_numpy(), minlength=K)
    assert sizes.min() >= 60
    assert sizes.max() <= 110


def test_two_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every way in and every way of asking."""
    monkeypatch.chdir(tmp_path)
    rows = blobs()
    np.save("rows.npy", rows)
    np.save("new.npy", blobs(98, seed=3))
    (tmp_path / "parts").mkdir()
    for number, part in enumerate(np.split(rows, [50, 400])):
        lists = pa.FixedSizeListArray.from_arrays(pa.array(part.ravel()), D)
        table = pa.table({"vector": lists, "name": [f"{number}-{row}" for row in range(len(part))]})
        pq.write_table(table, f"parts/{number}.parquet", row_group_size=70)
    assert main(["cluster", "rows.npy", "--k", str(K), *SIZES, "--out", "first.parquet"]) == 0
    k = ["--k", str(K)]
    jobs = {
        "cosine": ["cluster", "rows.npy", *k, "--max-size-ratio", "1.2", "--metric", "cosine"],
        "folder": ["cluster", "parts", *k, *SIZES, "--seed", "4"],
        "ids": ["cluster", "parts", *k, "--id", "name"],
        "ids again": ["assign", "first.safetensors", "parts", "--id", "name", "--max-size", "90"],
        "plain": ["cluster", "rows.npy", *k, "--init", "random", "--n-init", "2"],
        "start": ["cluster", "new.npy", "--start", "first.safetensors", "--min-size-ratio", "0.8"],
        "alone": ["cluster", "rows.npy", "--k", "1"],
        "nearest": ["assign", "first.safetensors", "new.npy"],
        "within": ["assign", "first.safetensors", "new.npy", "--min-size", "14", "--max-size", "14"],
    }
    ends = processes(tmp_path, 2, *([*words, "--out", f"{name} 2.parquet"] for name, words in jobs.items()))
    assert ends == [[(0, ""), (0, "")]] * len(jobs)
    for name, words in jobs.items():
        assert main([*words, "--out", f"{name} 1.parquet"]) == 0
        check_same(tmp_path, f"{name} 2", f"{name} 1")


def test_what_one_cannot_do_all_refuse(tmp_path: Path) -> None:
    """Three machines, each with files of its own. Exit code 1 and one line everywhere, and nothing written.

    At the end two rows among three: one process has none, and takes part all the same.
    """
    rows = blobs()
    for rank in range(3):
        folder = tmp_path / str(rank)
        folder.mkdir()
        np.save(folder / "there.npy", rows)
        np.save(folder / "few.npy", np.array([[0.0, 1.0], [9.0, 1.0]]))
        if rank != 2:
            np.save(folder / "missing.npy", rows)
        np.save(folder / "shorter.npy", rows[: N - rank])
        np.save(folder / "narrower.npy", rows[:, : D - (rank == 1)])
        np.save(folder / "changed.npy", rows * (1 + (rank == 2)))
        np.save(folder / "double.npy", rows.astype(np.float64 if rank == 1 else np.float32))
        nan = rows.copy()
        nan[N - 2, 3] = np.nan  # in the last one's part
        np.save(folder / "nan.npy", nan)
        (folder / "broken.npy").write_bytes(
            (folder / "there.npy").read_bytes()[: 5000 if rank == 1 else None]
        )
    (tmp_path / "0" / "exists.parquet").touch()
    (tmp_path / "2" / "sizes.csv").write_text("200\n" * K)
    cases = {
        "missing": "process 2 of 3: missing.npy: there is no such file or folder",
        "shorter": "process 1 of 3: shorter.npy holds 600 rows of 5 float32 features, checksum ",
        "narrower": "process 1 of 3: narrower.npy holds 601 rows of 4 float32 features, checksum ",
        "changed": "process 2 of 3: changed.npy holds 601 rows of 5 float32 features, checksum ",
        "double": "process 1 of 3: double.npy holds 601 rows of 5 float64 features",
        "nan": "contains NaN: row 599, column 3",
        "broken": "process 1 of 3: broken.npy cannot be read as .npy",
    }
    commands = [["cluster", f"{name}.npy", "--k", str(K), "--out", "c.parquet"] for name in cases]
    commands += [
        ["cluster", "there.npy", "--k", "20", "--min-size", "60", "--out", "c.parquet"],
        ["cluster", "there.npy", "--k", "20", "--out", "exists.parquet"],
        ["cluster", "there.npy", "--k", str(K), "--sizes", "sizes.csv", "--out", "c.parquet"],
    ]
    expected = [
        *cases.values(),
        "coke: 601 rows cannot fill 20 clusters of at least 60",
        "process 0 of 3: --out exists.parquet: it exists: pass --overwrite",
        "process 1 of 3: sizes.csv: there is no such file",
    ]
    few = ["cluster", "few.npy", "--k", "2", "--min-size", "1", "--out", "few.parquet"]
    before = {path.name for path in (tmp_path / "0").iterdir()}
    *ends, end_of_few = processes(tmp_path, 3, *commands, few, apart=True)
    for text, end in zip(expected, ends, strict=True):
        assert [code for code, _ in end] == [1, 1, 1], (text, end)
        for _, said in end:
            assert text in said
            assert len(said.splitlines()) == 1
    assert end_of_few == [(0, "")] * 3
    assert {path.name for path in (tmp_path / "0").iterdir()} - before == {"few.parquet", "few.safetensors"}
    assert sorted(pq.read_table(tmp_path / "0" / "few.parquet")["cluster"].to_pylist()) == [0, 1]


def test_missing_input_under_torchrun(tmp_path: Path) -> None:
    """It ends, with exit code 1, and says why."""
    (tmp_path / "0").mkdir()
    (tmp_path / "1").mkdir()
    np.save(tmp_path / "0" / "rows.npy", blobs())
    command = f'cd $RANK && exec "{sys.executable}" -m coke cluster rows.npy --k 3 --out c.parquet'
    done = torchrun(tmp_path, 2, "--no-python", "bash", "-c", command)
    assert done.returncode == 1
    assert "coke: process 1 of 2: rows.npy: there is no such file or folder" in done.stderr
    assert os.listdir(tmp_path / "0") == ["rows.npy"]


@pytest.mark.parametrize("lost", [0, 1])
def test_process_that_dies(lost: int, tmp_path: Path) -> None:
    """In the last pass, without a word: the others say so, and end."""
    np.save(tmp_path / "rows.npy", blobs())
    code = """
import os, signal, sys
import coke.bounded.command as command
from coke.cli import main
def places(*arguments):
    if os.environ["RANK"] == sys.argv[1]:
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(*arguments)
whole, command.places = command.places, places
sys.exit(main(["cluster", "rows.npy", "--k", "3", "--out", "c.parquet"]))
"""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(lost)],
            env={**shared, "MASTER_PORT": port, "RANK": str(rank)},
            cwd=tmp_path,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=120)[1] for process in started]
    assert started[lost].returncode == -signal.SIGKILL
    assert started[1 - lost].returncode == 1, said
    lines = [line for line in said[1 - lost].splitlines() if line.startswith("coke: ")]
    assert lines
    assert f"coke: process {1 - lost} of 2 lost another one" in lines[0]
    assert [name for name in os.listdir(tmp_path) if not name.startswith(".")] == ["rows.npy"]
