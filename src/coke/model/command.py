"""What `coke embed` and `coke predict` do: check what is asked, open the model, run, say what came of it."""

from __future__ import annotations

import os
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from coke.errors import ConfigError
from coke.images.decode import MAX_IMAGE_PIXELS
from coke.images.unreadable import to_install
from coke.memory import usable_cpus
from coke.model.embed import Embedded, check, embed_data
from coke.model.files import BACKBONE, load
from coke.model.listed import Listed
from coke.model.model import Model
from coke.model.predict import predict_data
from coke.output import check_output
from coke.progress import progress_bar
from coke.run import Run

SIZES = ("min_size", "max_size", "min_size_ratio", "max_size_ratio")


def embed(options: Namespace) -> None:
    """`coke embed`. Raises `CokeError` before any work."""
    check(options.out, options.features, options.tokens, options.dtype, options.overwrite)
    images = _listed(options)
    asked = {"features": options.features, "tokens": options.tokens, "number_type": options.dtype}
    what = "tokens" if options.tokens else f"{options.features} features"
    _carry_out(options, _opened(options), images, what, embed_data, asked)


def predict(options: Namespace) -> None:
    """`coke predict`. Raises `CokeError` before any work."""
    check_output(options.out, ".parquet", overwrite=options.overwrite)
    images, model = _listed(options), _opened(options)
    heads = range(len(model.heads)) if options.head is None else [options.head]
    sizes = {name: getattr(options, name) for name in SIZES if getattr(options, name) is not None}
    _carry_out(options, model, images, "clusters", predict_data, {"heads": heads, "sizes": sizes})


def _listed(options: Namespace) -> Listed:
    """The images, which are looked for before weights are; as large as asked, or as the run's own may be."""
    columns = {f"{name}_column": getattr(options, f"{name}_column") for name in ("image", "label")}
    columns = {key: value for key, value in columns.items() if value is not None}
    max_pixels, run = options.max_image_pixels, Run(options.model)
    if max_pixels is None:
        stated = run.config if run.config_file.is_file() else {}
        max_pixels = int(stated.get("max_image_pixels", MAX_IMAGE_PIXELS))
    return Listed.of(options.data, columns, max_pixels)


def _opened(options: Namespace) -> Model:
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    weights = getattr(options, "weights", None)
    if Path(options.model).is_dir():
        if weights is not None:
            raise ConfigError(f"{options.model} has weights of its own: leave --weights out")
        return load(options.model, device=device)
    if options.verb == "predict" or os.sep in options.model:
        raise ConfigError(f"{options.model}: there is no such run folder (one has a {BACKBONE})")
    return Model.of_timm(options.model, weights).to(device)


def _carry_out(
    options: Namespace,
    model: Model,
    images: Listed,
    what: str,
    work: Callable[..., Embedded],
    asked: dict[str, Any],
) -> None:
    console, began = Console(highlight=False, markup=False, soft_wrap=True), time.monotonic()
    console.print(
        f"{options.model}: {model.name}, {what} of {model.preprocessing.size} px, on {model.device}"
    )
    workers = options.workers
    if workers is None:  # none where the model itself needs the cores
        workers = 0 if model.device.type == "cpu" else min(16, usable_cpus())
    asked |= {"batch_size": options.batch_size, "workers": workers}
    with progress_bar(console, "images") as progress:
        done = work(model, images, options.out, progress=progress, **asked)
    seconds, n_failed = time.monotonic() - began, len(done.unreadable)
    if done.resumed_at:
        console.print(f"went on at image {done.resumed_at:,}")
    if n_failed:
        listed = options.out.with_name(f"{options.out.stem}.unreadable.csv")
        told = f"{n_failed:,} images cannot be read and have no row: {listed} says why"
        console.print(". ".join([told, *to_install(done.unreadable.values())]))
    rate = (done.n_rows + n_failed - done.resumed_at) / seconds
    console.print(f"{options.out}: {done.n_rows:,} images in {seconds:.1f} s ({rate:,.0f} a second)")
