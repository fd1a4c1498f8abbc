"""Vectors to cluster, from wherever they are: one interface over arrays, tensors, files and streams."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from coke.errors import DataError
from coke.vectors.arrays import ArrayVectors, to_numbers
from coke.vectors.files import open_path
from coke.vectors.source import Vectors
from coke.vectors.streams import StreamVectors

__all__ = ["Vectors", "open_vectors"]


def open_vectors(X: Any, *, column: str | None = None, device: Any = None) -> Vectors:
    """Look at ``X`` as rows of features [N, D], without copying it whole.

    | X | |
    |---|---|
    | numpy array, memory map, h5py or zarr array | any strides and byte order, cut into views |
    | torch tensor | detached; blocks on its device |
    | list of rows, data frame, or its column of lists | through ``numpy.asarray`` |
    | path of a .npy file | memory-mapped |
    | path of a .parquet file | a column of lists, by row groups |
    | folder of .npy or of .parquet files | in the order of their names, without those that begin with . or _ |
    | iterable of batches [b, D] that can be repeated, as a list or a ``DataLoader`` | one pass counts the rows |
    | function that returns an iterator over batches | likewise |

    Float16, 32, 64, bfloat16 tensors and integers keep their type. NaN and infinity are not looked for here.

    Args:
        X: any of these, or `Vectors`.
        column: of parquet: where the vectors are; default: the only column of lists of floats.
        device: where blocks are to arrive; default: the tensor's device, else the CPU.

    Raises:
        DataError: not N >= 1 rows of D >= 1 numbers, a file that cannot be read, an iterator that can be gone
            through only once.
        TypeError: sparse input, or objects that are no numbers.
        ConfigError: a device that is not here.

    >>> vectors = open_vectors([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]])
    >>> vectors.n_rows, vectors.n_features, vectors.dtype
    (3, 2, torch.float64)
    >>> [(first, block.tolist()) for first, block in vectors.slice(1, 3).blocks(8)]
    [(0, [[2.0, 3.0], [4.0, 5.0]])]
    """
    if isinstance(X, Vectors):
        return X if device is None else X.to(device)
    if isinstance(X, str | os.PathLike):
        return open_path(Path(X), column, device)
    if column is not None:
        raise DataError(f"column={column!r} is for parquet files, X is a {type(X).__name__}")
    if hasattr(X, "nnz") and hasattr(X, "tocsr"):
        raise TypeError("Sparse data is not supported, a dense array is needed: pass X.toarray()")
    if isinstance(X, Tensor) or _can_be_cut(X):
        return ArrayVectors(X, device)
    if isinstance(X, list | tuple) and len(X) and isinstance(X[0], Tensor) and X[0].ndim == 1:
        return ArrayVectors(_stacked(X), device)
    if hasattr(X, "__array__") or (isinstance(X, list | tuple) and not _is_batch(X)):
        return ArrayVectors(to_numbers(X, "X"), device)
    if isinstance(X, Iterator):
        raise DataError(
            f"X is a {type(X).__name__}, which can be gone through only once, and clustering takes many passes: "
            "pass a function that returns a new iterator each time, as open_vectors(lambda: batches())"
        )
    if isinstance(X, bytes) or not (isinstance(X, Iterable) or callable(X)):
        raise DataError(f"X must be an array, a tensor, a path or batches of rows, got {type(X).__name__}")
    return StreamVectors(X, device)


def _can_be_cut(X: Any) -> bool:
    """Whether it is an array that can be read in parts: numpy's, or one on disk that acts alike."""
    if isinstance(X, np.ndarray):
        return X.dtype != object and not np.ma.isMaskedArray(X)
    has = all(hasattr(X, name) for name in ("shape", "dtype", "__getitem__"))
    return has and isinstance(X.dtype, np.dtype) and X.dtype != object and not hasattr(X, "iloc")


def _is_batch(rows: Any) -> bool:
    """Whether a list holds batches [b, D] rather than rows: its first entry has two dimensions itself."""
    return len(rows) > 0 and getattr(rows[0], "ndim", 1) == 2


def _stacked(rows: Any) -> Tensor:
    try:
        return torch.stack(list(rows))
    except (RuntimeError, TypeError) as error:
        raise DataError(f"X cannot be read as an array: {error}") from error
