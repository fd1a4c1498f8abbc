"""The images of a data set as a model wants them, in order, by workers; what cannot be read is told, not dropped."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from coke.errors import ConfigError, DataError, UnreadableError
from coke.images import Rows, find_rows
from coke.images.decode import MAX_IMAGE_PIXELS, decode
from coke.images.table import Files
from coke.images.unreadable import list_unreadable, to_install
from coke.model.files import Preprocessing


class Listed(Dataset["Tensor | str"]):
    """The images of a data set, all splits, in order: what each is called, and its pixels as a model wants them."""

    def __init__(self, rows: list[Rows], max_pixels: int = MAX_IMAGE_PIXELS) -> None:
        self.rows, self.max_pixels = rows, max_pixels
        self.seen: Preprocessing | None = None  # set before workers are started
        self.places = [(part.source, row) for part in rows for row in range(len(part.keys))]
        self.keys = [key for part in rows for key in part.keys]
        if len(set(self.keys)) < len(self.keys):  # two splits number their rows
            self.keys = [f"{part.name.rpartition(', ')[2]}/{key}" for part in rows for key in part.keys]

    @classmethod
    def of(
        cls,
        data: str | Path | Listed,
        columns: Mapping[str, str] | None = None,
        max_pixels: int = MAX_IMAGE_PIXELS,
    ) -> Listed:
        """Those of ``data``, as `coke pretrain` takes it. Raises `DataError` where there are none."""
        if isinstance(data, Listed):
            return data
        if max_pixels < 1:
            raise ConfigError(f"max_image_pixels must be at least 1, got {max_pixels}")
        return cls(find_rows(data, **(columns or {})), max_pixels)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Tensor | str:
        assert self.seen is not None
        source, row = self.places[index]
        try:
            return self.seen.center(decode(source.load(row), self.max_pixels))
        except (DataError, OSError) as error:
            return str(error)

    def batches(
        self, seen: Preprocessing, batch_size: int, workers: int = 0, first: int = 0
    ) -> Iterator[tuple[Tensor, dict[int, str], int]]:
        """From number ``first`` on: pixels uint8 [b, 3, S, S] of those that can be read, why others of the batch cannot
        be, by their number, and the number of the next image.
        """
        if workers < 0:
            raise ConfigError(f"workers must be 0 or more processes, got {workers}")
        self.seen = seen
        numbers = list(range(first, len(self)))
        sampler = [numbers[start : start + batch_size] for start in range(0, len(numbers), batch_size)]
        for batch in DataLoader(self, batch_sampler=sampler, num_workers=workers, collate_fn=list):
            read = [image for image in batch if isinstance(image, Tensor)]
            failed = {first + index: image for index, image in enumerate(batch) if isinstance(image, str)}
            first += len(batch)
            none = torch.zeros((0, 3, seen.size, seen.size), dtype=torch.uint8)
            yield (torch.stack(read) if read else none), failed, first

    def digest(self) -> str:
        """Of keys and content, so that other images of the same names differ; of a file, size and time stand for it."""
        digest = hashlib.blake2b(digest_size=16)
        for key, (source, row) in zip(self.keys, self.places, strict=True):
            digest.update(f"{key}\n".encode(errors="surrogateescape"))
            try:
                if isinstance(source, Files):
                    status = (source.root / source.paths[row]).stat()
                    digest.update(f"{status.st_size} {status.st_mtime_ns}\n".encode())
                else:
                    content = source.load(row)
                    digest.update(content if isinstance(content, bytes) else np.asarray(content).tobytes())
            except (DataError, OSError) as error:
                digest.update(str(error).encode(errors="surrogateescape"))
        return digest.hexdigest()

    def left_out(self, failed: Mapping[int, str], out: Path) -> dict[str, str]:
        """Reasons by the images' keys, also in NAME.unreadable.csv beside an output, if there are any.

        Raises `UnreadableError` where no image could be read.
        """
        unreadable = {self.keys[index]: reason for index, reason in failed.items()}
        path = out.with_name(f"{out.stem}.unreadable.csv")
        list_unreadable(path, unreadable.items())
        if len(failed) == len(self):
            none = (
                f"{self.rows[0].name}: none of {len(self)} images can be read ({next(iter(failed.values()))})"
            )
            told = ". ".join([none, *to_install(failed.values()), f"All of them: {path}"])
            raise UnreadableError(told, list(unreadable.items()))
        return unreadable

    def columns(self, failed: Mapping[int, str]) -> dict[str, list[Any]]:
        """``key`` and, where there are classes, ``label`` of the images that can be read."""
        columns: dict[str, list[Any]] = {"key": self.keys}
        if any(part.labels is not None for part in self.rows):
            columns["label"] = []
            for part in self.rows:
                numbers = [-1] * len(part.keys) if part.labels is None else part.labels.tolist()
                columns["label"] += class_names(numbers, part.classes)
        kept = [index for index in range(len(self)) if index not in failed]
        return {name: [values[index] for index in kept] for name, values in columns.items()}


def class_names(numbers: Sequence[int], classes: Sequence[str] | None) -> list[str | None]:
    """What labels are called, as far as they have names; None where there is no label.

    >>> class_names([1, -1, 2], ["cat", "dog"])
    ['dog', None, '2']
    """
    known = classes or ()
    return [None if n < 0 else known[n] if n < len(known) else str(n) for n in numbers]
