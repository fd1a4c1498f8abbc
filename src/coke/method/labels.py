"""What every image was called last, and in stage 2 what it was called on average: one small integer each.

Nothing of size N x D or N x K is ever kept: N x H integers, and in stage 2 five (label, count) slots more.
Shapes: N images, H heads, B batch, S slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from coke.errors import BoundsError, ConfigError

UNASSIGNED = -1
SLOTS = 5  # distinct labels that an image's average keeps in each head
_LIGHTEST = -2  # sorts before every count, also before the -1 of a label from before stage 2


class LabelMemory(nn.Module):
    """Each image's label in each head, read and written by image number; kept outside any DDP wrapper.

    In stage 2 the memory also counts, for up to ``slots`` labels per image and head, in how many epochs the
    image bore each: the average of its one-hot labels, exact while an image has at most ``slots`` distinct
    labels. Beyond that the new label takes over the lightest slot (the first of equals) together with its
    count, so the counts always sum to the epochs seen and no count is too large by more than a
    1 / ``slots`` share (the Space-Saving rule of Metwally, Agrawal and El Abbadi, ICDT 2005).

    Args:
        n_samples: N.
        n_clusters: K, or one K per head; decides the integer type (int8 up to 128, int16 up to 32,768).
        slots: S, distinct labels kept per image and head in stage 2.

    Attributes:
        labels: [N, H] last labels, `UNASSIGNED` (-1) for an image not written yet.

    Examples:
        >>> memory = LabelMemory(4, n_clusters=[10, 20])
        >>> memory.write(torch.tensor([2, 0]), torch.tensor([[1, 2], [3, 4]]))
        >>> memory.read(torch.tensor([0, 1, 2])).tolist()
        [[3, 4], [-1, -1], [1, 2]]
    """

    labels: Tensor
    slot_labels: Tensor | None
    slot_counts: Tensor | None

    def __init__(self, n_samples: int, n_clusters: int | Sequence[int], slots: int = SLOTS) -> None:
        super().__init__()
        clusters = [n_clusters] if isinstance(n_clusters, int) else list(n_clusters)
        if n_samples < 1 or not clusters or min(clusters) < 1:
            raise BoundsError(f"need at least one image, head and cluster; got {n_samples=}, {n_clusters=}")
        if slots < 1:
            raise ConfigError(f"slots must be at least 1, got {slots}")
        self.n_clusters, self.slots = tuple(clusters), slots
        dtype = smallest_integer_type(max(clusters))
        self.register_buffer("labels", torch.full((n_samples, len(clusters)), UNASSIGNED, dtype=dtype))
        self.register_buffer("slot_labels", None)
        self.register_buffer("slot_counts", None)

    def __len__(self) -> int:
        """N, the number of images."""
        return len(self.labels)

    @property
    def averaging(self) -> bool:
        """Whether labels are being averaged: stage 2."""
        return self.slot_labels is not None

    def read(self, ids: Tensor) -> Tensor:
        """Last labels of images [B], as int64 [B, H]; -1 where unassigned."""
        return self.labels.index_select(0, ids).long()

    def read_average(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Labels int64 [B, H, S] and their shares float32 [B, H, S] that sum to 1; S is 1 before stage 2.

        An image that has no average yet gives its last label with share 1; an image without a label gives
        -1 and shares of 0. Empty slots have share 0 and label -1.
        """
        if self.slot_labels is None or self.slot_counts is None:
            last = self.read(ids).unsqueeze(-1)
            return last, (last >= 0).float()
        counts = self.slot_counts.index_select(0, ids).abs().float()
        shares = counts.div_(counts.sum(dim=-1, keepdim=True).clamp_min_(1))
        return self.slot_labels.index_select(0, ids).long(), shares

    def write(self, ids: Tensor, labels: Tensor) -> None:
        """Store labels [B, H] of images [B]; of an image that stands twice in a batch, the last row counts."""
        if labels.shape != (len(ids), len(self.n_clusters)):
            raise ConfigError(
                f"labels must be [{len(ids)}, {len(self.n_clusters)}], got {list(labels.shape)}"
            )
        if ids.device.type == "cpu" and len(ids):  # on a GPU the look would stall every step
            low, high = (int(extreme) for extreme in labels.aminmax())
            if low < 0 or high >= max(self.n_clusters):
                raise ConfigError(
                    f"labels must lie in 0 ... {max(self.n_clusters) - 1}, got {low} ... {high}"
                )
        labels = labels.to(self.labels.dtype)
        if not _surely_distinct(ids):
            labels = labels.index_select(0, last_occurrence(ids))
        self.labels.index_copy_(0, ids, labels)
        if self.slot_labels is not None and self.slot_counts is not None:
            self._count(ids, labels[..., None], self.slot_labels, self.slot_counts)

    def _count(self, ids: Tensor, labels: Tensor, slot_labels: Tensor, slot_counts: Tensor) -> None:
        known, counts = slot_labels.index_select(0, ids), slot_counts.index_select(0, ids)
        slot = counts.masked_fill(known == labels, _LIGHTEST).argmin(dim=-1, keepdim=True)
        count = counts.gather(-1, slot).clamp_min_(0) + 1
        slot_labels.index_copy_(0, ids, known.scatter_(-1, slot, labels))
        slot_counts.index_copy_(0, ids, counts.scatter_(-1, slot, count))

    def begin_averaging(self) -> None:
        """Enter stage 2 (twice is once): from now on every write counts towards an image's average.

        Until then an image's average is its last label, kept in the first slot under a count of -1 which the
        first write takes over.
        """
        if not self.averaging:
            empty = (0, self.slots - 1)
            self.slot_labels = torch.nn.functional.pad(self.labels[..., None], empty, value=UNASSIGNED)
            self.slot_counts = (self.slot_labels >= 0).to(torch.int16).neg_()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        if f"{prefix}slot_labels" in state_dict:
            self.begin_averaging()
        super()._load_from_state_dict(state_dict, prefix, *args)


def smallest_integer_type(n_clusters: int) -> torch.dtype:
    """The smallest signed integer type that holds 0 ... n_clusters - 1 and `UNASSIGNED`.

    >>> smallest_integer_type(128), smallest_integer_type(129), smallest_integer_type(40_000)
    (torch.int8, torch.int16, torch.int32)
    """
    for dtype in (torch.int8, torch.int16, torch.int32):
        if n_clusters - 1 <= torch.iinfo(dtype).max:
            return dtype
    raise BoundsError(f"n_clusters must be below 2^31, got {n_clusters}")


def last_occurrence(ids: Tensor) -> Tensor:
    """For each row of ids [B], the last row that holds the same id: duplicates then write one value.

    >>> last_occurrence(torch.tensor([5, 3, 5])).tolist()
    [2, 1, 2]
    """
    ordered, order = ids.sort(stable=True)
    return order[torch.searchsorted(ordered, ids, right=True) - 1]


def _surely_distinct(ids: Tensor) -> bool:
    """Whether no id stands twice, asked where the answer is cheap: a set costs a tenth of a cold sort."""
    return ids.device.type == "cpu" and len(set(ids.tolist())) == len(ids)
