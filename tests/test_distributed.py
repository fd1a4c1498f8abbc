"""The collectives against their definition, in three gloo processes and in none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from coke import distributed
from coke.errors import BoundsError, DataError

N_PROCESSES = 3
ROWS = [0, 1, 2, 3, 7, 9, 100]  # fewer than processes, even, uneven


@given(st.integers(0, 200), st.integers(1, 17))
def test_shards_are_the_batch(n_rows: int, count: int) -> None:
    """Contiguous, in order, all of it, sizes differing by at most one and never rising."""
    shards = [distributed.shard(n_rows, index, count) for index in range(count)]
    assert [row for shard in shards for row in range(n_rows)[shard]] == list(range(n_rows))
    sizes = [shard.stop - shard.start for shard in shards]
    assert max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True)


def test_alone_they_are_identities() -> None:
    rows = torch.randn(5, 3, requires_grad=True)
    assert not distributed.active()
    assert (distributed.rank(), distributed.world_size()) == (0, 1)
    assert distributed.shard(5) == slice(0, 5)
    gathered = distributed.gather_rows(rows, 5)
    assert torch.equal(gathered, rows)
    assert not gathered.requires_grad
    assert torch.equal(distributed.sum_over_processes(rows), rows)
    assert distributed.any_process(True)
    assert not distributed.any_process(False)
    assert distributed.smallest(2.5) == 2.5
    distributed.barrier()
    distributed.broadcast_state(nn.BatchNorm1d(2))
    distributed.fail_together(None)
    error = BoundsError("too few")
    with pytest.raises(BoundsError, match=r"^too few$") as caught:
        distributed.fail_together(error)
    assert caught.value is error


@pytest.mark.slow
def test_three_processes(tmp_path: Path) -> None:
    mp.start_processes(check_process, args=(tmp_path,), nprocs=N_PROCESSES, start_method="spawn")
    assert sorted(path.name for path in tmp_path.glob("passed *")) == ["passed 0", "passed 1", "passed 2"]


def check_process(rank: int, folder: Path) -> None:
    """What each process sees; an assertion that fails here fails the test."""
    os.environ["OMP_NUM_THREADS"] = "1"
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=N_PROCESSES)
    assert (distributed.rank(), distributed.world_size()) == (rank, N_PROCESSES)
    for n_rows in ROWS:
        for dtype in (torch.float32, torch.int64, torch.bfloat16):
            whole = (torch.arange(n_rows * 2).reshape(n_rows, 2) * 3).to(dtype)
            gathered = distributed.gather_rows(whole[distributed.shard(n_rows)], n_rows)
            assert gathered.dtype == dtype
            assert torch.equal(gathered, whole), (n_rows, dtype, gathered)
        flat = torch.arange(n_rows)
        assert torch.equal(distributed.gather_rows(flat[distributed.shard(n_rows)], n_rows), flat)
    parameter = torch.full((2, 2), float(rank), requires_grad=True)
    assert not distributed.gather_rows(parameter * 2, 2 * N_PROCESSES).requires_grad

    own = torch.tensor([float(rank), 1.0])
    assert distributed.sum_over_processes(own).tolist() == [3.0, 3.0]
    assert own.tolist() == [float(rank), 1.0]  # untouched
    assert distributed.any_process(rank == 1)
    assert not distributed.any_process(False)
    assert distributed.smallest(10.0 - rank) == 8.0

    norm = nn.BatchNorm1d(2)
    assert norm.running_mean is not None
    norm.running_mean.fill_(rank + 5)
    weight = nn.Parameter(torch.full((2,), float(rank)))
    norm.weight = weight
    distributed.broadcast_state(norm)
    assert norm.running_mean.tolist() == [5.0, 5.0]
    assert norm.weight.tolist() == [float(rank)] * 2  # parameters are DDP's
    check_failures(rank)
    distributed.barrier()
    dist.destroy_process_group()
    (folder / f"passed {rank}").touch()  # got here: every assertion held


def check_failures(rank: int) -> None:
    """One failure, two, and one that all share, each heard by everyone; no process is left waiting."""
    distributed.fail_together(None)
    with pytest.raises(DataError, match=r"^process 1 of 3: rows.npy: no such file$"):
        distributed.fail_together(DataError("rows.npy: no such file") if rank == 1 else None)
    expected = r"^process 0 of 3: TypeError: sparse; process 2 of 3: empty$"
    errors = [TypeError("sparse"), None, BoundsError("empty")]
    with pytest.raises(DataError, match=expected) as caught:
        distributed.fail_together(errors[rank])
    assert caught.value.__cause__ is errors[rank]
    with pytest.raises(BoundsError, match=r"^too few rows$"):
        distributed.fail_together(BoundsError("too few rows"))
