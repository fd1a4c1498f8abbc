"""Streams are gone through many times: what must be the same each time, and what is said where it is not."""

import numpy as np
import pytest
import torch

from coke.errors import DataError
from coke.vectors import open_vectors

ROWS = torch.from_numpy(np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32))


class Changing:
    """A function that yields other rows from its second pass on (the first one counts)."""

    def __init__(self, later):
        self.later, self.passes = later, 0

    def __call__(self):
        self.passes += 1
        return iter([ROWS[:8], ROWS[8:]] if self.passes == 1 else self.later)


@pytest.mark.parametrize(
    ("later", "message"),
    [
        ([ROWS[:8]], "gave 8 rows in this pass and 12 when it was opened: every pass must"),
        ([], "gave 0 rows in this pass"),
        ([ROWS, ROWS], "gave at least 24 rows in this pass and 12"),
        ([ROWS[:, :2]], "changes its shape: 2 features from row 0 on, 3 before"),
        ([ROWS.flip(0)], "starts with another row than when it was opened.*shuffle=False"),
        ([ROWS + torch.nan], "starts with another row"),
        ([{"a": 1}], "batch 0 of X must be an array or a tensor"),
    ],
)
def test_a_pass_that_differs_is_an_error(later, message):
    vectors = open_vectors(Changing(later))
    with pytest.raises(DataError, match=message):
        list(vectors.blocks(4))


def test_rows_that_a_later_pass_lacks_cannot_be_taken():
    with pytest.raises(DataError, match="gave 8 rows in this pass and 12"):
        open_vectors(Changing([ROWS[:8]])).take(torch.tensor([2, 11]))


def test_no_row_too_many_is_yielded_before_the_error():
    blocks, seen = open_vectors(Changing([ROWS[:8], ROWS[:8]])).blocks(2), []
    with pytest.raises(DataError, match="at least 16"):
        seen.extend(blocks)
    assert len(seen) <= 6


def test_embeddings_computed_anew_may_differ_by_rounding():
    rounded = ROWS * (1 + 1e-4)
    assert torch.equal(torch.cat([b for _, b in open_vectors(Changing([rounded])).blocks(5)]), rounded)


def test_what_is_not_finite_is_left_to_the_first_pass():
    rows = ROWS.clone()
    rows[0, 1], rows[3, 0] = torch.nan, torch.inf
    blocks = [block for _, block in open_vectors(lambda: iter([rows])).blocks(5)]
    assert torch.equal(torch.cat(blocks).nan_to_num(), rows.nan_to_num())


def test_one_slice_reads_no_further_than_it_must():
    read = []

    def batches():
        for first in range(0, 12, 3):
            read.append(first)
            yield ROWS[first : first + 3]

    vectors = open_vectors(batches)
    read.clear()
    assert torch.equal(torch.cat([block for _, block in vectors.slice(2, 5).blocks(8)]), ROWS[2:5])
    assert read == [0, 3]
    read.clear()
    assert torch.equal(vectors.take(torch.tensor([1, 4])), ROWS[[1, 4]])
    assert read[-1] < 9
    read.clear()
    assert list(vectors.slice(5, 5).blocks(8)) == []
    assert read == []


def test_a_slice_of_a_stream_that_ends_early():
    vectors = open_vectors(Changing([ROWS[:6]]))
    with pytest.raises(DataError, match="gave 6 rows in this pass and 12"):
        list(vectors.slice(4, 9).blocks(4))


def test_batches_of_several_types_come_in_the_widest():
    vectors = open_vectors([ROWS[:5].half(), ROWS[5:8].numpy(), ROWS[8:].double()])
    assert vectors.dtype == torch.float64
    assert {block.dtype for _, block in vectors.blocks(4)} == {torch.float64}


def test_errors_of_the_stream_itself_pass_through():
    def broken():
        yield ROWS
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        open_vectors(broken)
