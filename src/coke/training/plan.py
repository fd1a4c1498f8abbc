"""What a run will do, settled before any work: its images, its configuration, and why it is as it is."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from coke.errors import ConfigError, ResumeError
from coke.images import Splits, open_data
from coke.output import is_writable
from coke.run import Run
from coke.training.auto import check_settings, resolve
from coke.training.backbone import check_architecture, find_init
from coke.training.config import Config, chosen, without_fixed
from coke.training.continued import check_earlier
from coke.training.recipes import ALIASES, find_recipe
from coke.training.settings import places, plain

EMBEDDED = "textures"
_NO_KEYS = {
    "recipe": "recipe is given as --recipe NAME (in Python: recipe=...), not as a key",
    "data": "data is given as DATA, not as a key",
}


@dataclass(frozen=True)
class Plan:
    """What will be done: the images, the configuration without ``auto``, and why it is as it is."""

    splits: Splits
    config: Config
    reasons: list[str]
    place: str  # where the images were found


def default_folder(data: str | os.PathLike[str] | None, recipe: str | None) -> Path:
    """Where a run goes if nothing is said: named after its recipe, or after the images where that is "auto".

    >>> default_folder(None, None).as_posix(), default_folder("photos/birds", None).as_posix()
    ('runs/textures', 'runs/birds')
    """
    if recipe in (None, "auto"):
        recipe = EMBEDDED if data in (None, EMBEDDED) else Path(os.fspath(data or "")).stem or "auto"
    return Path("runs") / str(recipe)


def make_plan(
    data: str | os.PathLike[str] | None,
    recipe: str | None,
    overrides: Mapping[str, Any],
    *,
    run: Run | None = None,
    backbone: nn.Module | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Plan:
    """Read the images and settle every figure. Raises a `CokeError` for whatever cannot work.

    With a ``run``, which is to be resumed, its configuration stands for whatever is not given.
    """
    from coke.backbones import check_name

    if run is not None and not run.config_file.is_file():
        raise ResumeError(
            f"{run.path} holds no run to resume: {run.config_file.name} is missing; start it without --resume"
        )
    overrides = plain(dict(overrides))
    settings: dict[str, Any] = {}
    if run is not None:  # what is fixed now is compared when its checkpoint is read
        settings = Config(**without_fixed(run.config)[0]).as_dict()
    elif overrides.get("continues") is not None:
        earlier = Run(os.fspath(overrides["continues"]))
        overrides = {**overrides, "continues": str(earlier.path)}
        settings = {**Config(**without_fixed(earlier.config)[0]).as_dict(), "init": None}
    recipe = recipe and ALIASES.get(recipe, recipe)
    if settings and recipe in (None, settings["recipe"]):
        settings["data"] = settings["data"] if data is None else os.fspath(data)
        heads = overrides.get("n_clusters", settings["n_clusters"])
        if (len(heads) if isinstance(heads, list) else 1) != len(settings["dual_lr"]):
            settings["dual_lr"] = None  # so that the refusal names K, not the number of dual steps
    else:
        data = EMBEDDED if data is None else os.fspath(data)
        found = find_recipe(recipe or (EMBEDDED if data == EMBEDDED else "auto"))
        settings = {**found.settings, "recipe": found.name, "data": data}
    for key, refusal in _NO_KEYS.items():
        asked = str(overrides.get(key, settings[key]))
        if ALIASES.get(asked, asked) != settings[key]:  # another run's whole config may agree
            raise ConfigError(refusal)
    overrides = {key: value for key, value in overrides.items() if key not in _NO_KEYS}
    if backbone is not None:
        overrides["backbone"] = f"custom:{type(backbone).__name__}"
    settings = chosen(settings, overrides)
    known = check_settings(settings)
    if known.backbone and not known.backbone.startswith("custom:"):
        if any(node[key] is None for node, key in places(settings, "views.size")):
            check_name(known.backbone)
        else:
            check_architecture(known)
    if known.init:
        find_init(known.init)
    if known.continues and run is None:
        check_earlier(Run(known.continues), known)
    _check_cache(known.cache)
    place = known.data if run is None or data is not None else run.data
    splits = open_data(
        place,
        seed=known.seed,
        max_unreadable_share=known.max_unreadable_share,
        max_image_pixels=known.max_image_pixels,
        image_column=known.image_column,
        label_column=known.label_column,
        progress=progress,
    )
    resolved = resolve(settings, splits.train)
    return Plan(splits, resolved.config, resolved.reasons, place)


def _check_cache(cache: str) -> None:
    """Refuse a folder for smaller copies that cannot be one, before images are read."""
    folder = Path(cache)
    if not cache or (folder.exists() and not folder.is_dir()) or not is_writable(folder / "copy"):
        raise ConfigError(f"cache={cache!r} must be memory, none, or a folder that can be written to")
