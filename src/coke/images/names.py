"""Names that people give to splits."""

from __future__ import annotations

import re

_SPLITS = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "val": "val",
    "valid": "val",
    "validation": "val",
}
_FIRST_WORD = re.compile(r"^[A-Za-z]+(?=$|[-_. ])")


def split_of(name: str) -> str | None:
    """The split a file or folder name begins with: "train", "test", "val", or None.

    >>> split_of("validation-00000-of-00001"), split_of("Train"), split_of("trainspotting")
    ('val', 'train', None)
    """
    word = _FIRST_WORD.match(name)
    return _SPLITS.get(word.group().lower()) if word else None
