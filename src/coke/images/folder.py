"""A folder of images, flat or nested, with or without class folders, with or without split folders."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from coke.errors import DataError
from coke.images.labels import number_labels
from coke.images.table import Files, Rows, Table, split_of
from coke.reading import files_below

SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".gif"),
    *(
        ".avif",
        ".heic",
        ".heif",
    ),  # listed as unreadable where what reads them is not installed, not passed over
)
"""Which files are taken for images, upper or lower case."""


def find_folder(root: Path) -> Table:
    """The images below a folder.

    Split folders: where the folder holds one named ``train`` (or training), that is learned from; one named
    ``test``, else ``val`` (or valid, validation), is what probes query. Everything beside them is not used,
    and a remark says so. Without a ``train`` folder, or where the only split folder is ``train`` and others
    beside it hold images as well (classes of vehicles, say), every image below the folder is learned from.

    Labels: where every image of a split lies exactly one folder deep, and there are at least two such
    folders, one of them with two images or more, the folders' names are the labels (torchvision's
    ImageFolder layout). Any other nesting is read as images without labels. Labels serve probes only, so a
    mistaken reading changes no training.

    Files with other suffixes than `SUFFIXES` are counted in a remark; names that begin with a dot are
    hidden and skipped; links are followed. Raises `DataError` for a folder without images.
    """
    splits, name = _split_folders(root), root.resolve().name
    if set(splits) == {"train"} and _images_beside(root, splits["train"]):
        remark = "'train' is read like the folders beside it, of which none is test or val"
        return Table(name, {"": partial(_read, root, root)}, lambda used: [remark])
    if "train" not in splits:
        return Table(name, {"": partial(_read, root, root)})

    def unused(used: Sequence[str]) -> list[str]:
        names = [splits[split].name for split in used]
        beside = sorted(
            entry.name for entry in root.iterdir() if entry.name not in names and entry.name[0] != "."
        )
        few = ", ".join(beside[:5]) + (f" and {len(beside) - 5} more" if len(beside) > 5 else "")
        return [f"not used, beside the split folders: {few}"] if beside else []

    return Table(name, {split: partial(_read, root, folder) for split, folder in splits.items()}, unused)


def _images_beside(root: Path, train: Path) -> bool:
    """Whether other folders hold images too: then a lone ``train`` may be a class of vehicles."""
    others = [entry for entry in root.iterdir() if entry.is_dir() and entry != train and entry.name[0] != "."]
    return any(file.lower().endswith(SUFFIXES) for folder in others for file in files_below(folder))


def _split_folders(root: Path) -> dict[str, Path]:
    """Folders whose whole name states a split. Raises `DataError` where two state the same."""
    splits: dict[str, Path] = {}
    for folder in sorted(root.iterdir()):
        split = split_of(folder.name) if folder.name.isalpha() and folder.is_dir() else None
        if split is None:
            continue
        if split in splits:
            raise DataError(f"{root}: {splits[split].name} and {folder.name} both name the {split} split")
        splits[split] = folder
    return splits


def _read(root: Path, folder: Path, name: str) -> Rows:
    """The images of one split, keyed by their path below the root, with remarks on labels and other files."""
    files = files_below(folder)
    images = [file for file in files if file.lower().endswith(SUFFIXES)]
    counts = Counter(
        Path(file).suffix.lower() or "no suffix" for file in files if not file.lower().endswith(SUFFIXES)
    )
    others = ", ".join(f"{count} {kind}" for kind, count in counts.most_common(5))
    if not images:
        held = f"it holds files of other kinds: {others}" if others else "it is empty"
        raise DataError(f"{folder}: no images ({', '.join(SUFFIXES)}); {held}")
    remarks: list[str] = []
    labels, classes = None, None
    parents = [file.split("/")[0] if file.count("/") == 1 else None for file in images]
    members = Counter(parents)
    if None not in members and len(members) > 1 and max(members.values()) > 1:
        labels, classes = number_labels(parents, str(folder))
        remarks.append(f"labels are the names of {len(members)} class folders")
    elif len(members) > 1 or None not in members:
        remarks.append("the folders are not taken for classes")
    if others:
        remarks.append(f"files of other kinds in {folder.name}: {others}")
    keys = [(folder.relative_to(root) / image).as_posix() for image in images]
    _refuse_undecodable(root, keys)
    return Rows(name, keys, Files(root, keys), labels, classes, tuple(remarks))


def _refuse_undecodable(root: Path, keys: list[str]) -> None:
    """Names in another encoding cannot be written into a list of the images."""
    odd = [name for name in (str(root), *keys) if not _is_utf8(name)]
    if odd:
        raise DataError(
            f"{os.fsencode(odd[0])!r}{f' and {len(odd) - 1} other names are' if odd[1:] else ' is'} not UTF-8: "
            "rename what is not, for instance with `convmv -r -f latin1 -t utf8 --notest`"
        )


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # surrogates, which stand for bytes that are no UTF-8
        return False
    return True
