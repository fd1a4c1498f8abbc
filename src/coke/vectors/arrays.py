"""Vectors that lie in memory, or in an array that can be cut like one: numpy, memory maps, torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from coke.errors import DataError
from coke.vectors.source import Vectors, check_shape

_KNOWN = {"float16", "bfloat16", "float32", "float64", "uint8", "int8", "int16", "int32", "int64"}
_TAKEN_AS = {"bool": "uint8", "uint16": "int32", "uint32": "int64", "uint64": "float64"}
"""Types that torch has no arithmetic for, and what holds their values."""
_ROW = (list, tuple, np.ndarray)  # in a column of a data frame


class ArrayVectors(Vectors):
    """Rows of a tensor, a numpy array, a memory map, or of anything with a shape, a dtype and slices (h5py, zarr).

    Blocks are views where torch can look at the array as it is; a type, byte order or stride that it cannot
    look at is converted block by block. Those of a tensor stay on its device unless another is asked for.

    >>> vectors = ArrayVectors(np.arange(6).reshape(3, 2))
    >>> [(first, block.tolist()) for first, block in vectors.blocks(2)]
    [(0, [[0, 1], [2, 3]]), (2, [[4, 5]])]
    """

    def __init__(self, array: Any, device: Any = None, name: str = "X") -> None:
        if isinstance(array, Tensor):
            array = usable_tensor(array, name)
            self.kind, dtype = "tensor", array.dtype
            device = array.device if device is None else device
        else:
            dtype = torch_type(array.dtype, name)
        super().__init__(name, check_shape(array.shape, name), dtype, device)
        self._array = array

    def _read(self, start: int, stop: int, wanted_rows: int) -> Iterator[Tensor]:
        for first in range(start, stop, wanted_rows):
            yield as_tensor(self._array[first : min(first + wanted_rows, stop)])

    def _take(self, ids: Tensor) -> Tensor:
        if isinstance(self._array, Tensor):
            return self._array.index_select(0, ids.to(self._array.device))
        if isinstance(self._array, np.ndarray):
            return as_tensor(self._array[ids.numpy()])
        return super()._take(ids)


def usable_tensor(tensor: Tensor, name: str) -> Tensor:
    """Without its gradient, and in a type that torch can calculate with; `DataError` where there is none.

    >>> usable_tensor(torch.tensor([[True]]), "X")
    tensor([[1]], dtype=torch.uint8)
    """
    if tensor.layout != torch.strided:
        raise TypeError(
            f"Sparse tensors are not supported ({name} is {tensor.layout}): pass {name}.to_dense()"
        )
    kind = str(tensor.dtype).removeprefix("torch.")
    if tensor.is_complex():
        raise _complex(tensor.dtype, name)
    if kind not in _KNOWN | _TAKEN_AS.keys():
        raise DataError(
            f"{name} is {tensor.dtype}, which torch cannot calculate with: pass {name}.to(torch.float32)"
        )
    return tensor.detach().to(getattr(torch, _TAKEN_AS.get(kind, kind)))


def torch_type(dtype: np.dtype[Any], name: str) -> torch.dtype:
    """The torch type that blocks of this numpy type come in; `DataError` for complex numbers and what is no number.

    >>> torch_type(np.dtype(">f4"), "X"), torch_type(np.dtype("uint16"), "X")
    (torch.float32, torch.int32)
    >>> torch_type(np.dtype("<U3"), "X")
    Traceback (most recent call last):
    coke.errors.DataError: X must be numbers, its dtype is <U3: convert it to float32 first
    """
    if dtype.kind == "c":
        raise _complex(dtype, name)
    taken_as = _numpy_type(dtype).name
    if dtype.kind not in "fiub" or taken_as not in _KNOWN:
        raise DataError(f"{name} must be numbers, its dtype is {dtype}: convert it to float32 first")
    return getattr(torch, taken_as)


def _complex(dtype: Any, name: str) -> DataError:
    return DataError(f"Complex data not supported: {name} is {dtype}, pass real and imaginary parts")


def _numpy_type(dtype: np.dtype[Any]) -> np.dtype[Any]:
    if dtype.kind == "f" and dtype.itemsize > 8:
        return np.dtype("float64")
    return np.dtype(_TAKEN_AS.get(dtype.name, dtype.newbyteorder("=")))


def as_tensor(array: Any) -> Tensor:
    """An array as a tensor: a view where that is possible, also of one that is read-only. Tensors stay as they are.

    >>> as_tensor(np.broadcast_to(np.float16(1), (1, 2)))
    tensor([[1., 1.]], dtype=torch.float16)
    """
    if isinstance(array, Tensor):
        return array
    array = np.asarray(array)
    array = array.astype(_numpy_type(array.dtype), copy=False)
    steps = any(stride < 0 or stride % array.itemsize for stride in array.strides)
    if steps or not array.flags.aligned:
        array = array.copy()
    return torch.from_numpy(array if array.flags.writeable else np.asarray(_Unlocked(array)))


class _Unlocked:
    """A read-only array, shown as if it were not: torch warns about those, and nothing here writes to it."""

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        face = array.__array_interface__
        self.__array_interface__ = {**face, "data": (face["data"][0], False)}
        self._array = array  # what keeps the memory


def to_numbers(values: Any, name: str) -> np.ndarray[Any, Any]:
    """Lists, data frames, their columns of lists, and arrays of objects as an array of numbers.

    >>> to_numbers([[1, 2.5]], "X")
    array([[1. , 2.5]])
    >>> to_numbers([[1], [2, 3]], "X")
    Traceback (most recent call last):
    coke.errors.DataError: X cannot be read as an array: its rows have different lengths
    """
    if isinstance(values, np.ma.MaskedArray) and np.ma.is_masked(values):
        raise DataError(
            f"{name} has {int(np.ma.count_masked(values)):,} masked values: fill them or leave rows out"
        )
    try:
        array = np.asarray(values)
        if array.dtype == object and array.ndim == 1 and isinstance(next(iter(array), None), _ROW):
            array = _stacked(array)
    except ValueError as error:
        reason = "its rows have different lengths" if "inhomogeneous" in str(error) else error
        raise DataError(f"{name} cannot be read as an array: {reason}") from error
    if array.dtype != object:
        return array
    wanted = np.complex128 if any(isinstance(value, complex) for value in array.ravel()[:100]) else np.float64
    try:
        return array.astype(wanted)
    except (TypeError, ValueError) as error:
        place, value = next(pair for pair in np.ndenumerate(array) if not _fits(pair[1], wanted))
        where = ", column ".join(f"{index:,}" for index in place)
        kind = TypeError if isinstance(error, TypeError) and type(value).__name__ != "NAType" else DataError
        raise kind(f"{name} of dtype object has {value!r} in row {where}, no number: {error}") from error


def _fits(value: Any, dtype: Any) -> bool:
    try:
        return np.ndim(dtype(value)) == 0
    except (TypeError, ValueError):
        return False


def _stacked(column: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """A column [N] of sequences, as data frames hold vectors, as an array [N, D]."""
    rows = [np.asarray(row) for row in column]
    for index, row in enumerate(rows):
        if row.shape != rows[0].shape:
            came = f"{len(row)} values" if row.ndim else repr(column[index])
            raise ValueError(f"row {index:,} has {came}, row 0 has {len(rows[0])}: all must have as many")
    return np.stack(rows)
