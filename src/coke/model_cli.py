"""The verbs for a trained model, `coke embed` and `coke predict`: their arguments, and what they say."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from coke.interrupt import cleaning_up


def add_verbs(verbs: Any) -> None:
    """Add both to the subparsers of `coke.cli`."""
    embed = verbs.add_parser(
        "embed",
        help="features of images, into a file that `coke cluster` takes",
        description="Write the features of every image of DATA, in order, with its key. Asked for the same again, "
        "an interrupted one goes on where it was.",
        epilog="""\
examples:  coke embed runs/photos photos --out photos.parquet
           coke embed resnet18 photos --weights resnet18.safetensors --out photos.parquet
next:      coke cluster photos.parquet --k 20 --metric cosine --out clusters.parquet""",
    )
    embed.add_argument("model", metavar="RUN|NAME", help="a run folder, or the name of any of timm's models")
    add = embed.add_argument
    _add_common(embed, "a .parquet (key, label, embedding) or .npy file")
    add("--weights", type=Path, metavar="FILE", help="of NAME; default: the published ones")
    add(
        "--features",
        choices=("backbone", "projection"),
        default="backbone",
        help="pooled backbone features (default), or the unit vectors that a run's clusters are made of",
    )
    add("--tokens", action="store_true", help="a row for each patch or position, before pooling")
    add("--dtype", choices=("float16", "float32"), default="float32", help="of the numbers; default: float32")
    embed.set_defaults(run=_embed)

    predict = verbs.add_parser(
        "predict",
        help="which of a run's clusters other images belong to",
        description="Put every image of DATA into the clusters of a run, by the run's numbers: each into the nearest, "
        "or, where sizes are given, so that these hold among the new images.",
        epilog="""\
example:  coke predict runs/photos new-photos --out new.parquet --max-size-ratio 2
before:   coke pretrain photos, whose clusters these are""",
    )
    predict.add_argument("model", metavar="RUN", help="a run folder")
    _add_common(predict, ".parquet: key, and per head cluster, score, margin, second")
    predict.add_argument("--head", type=int, metavar="H", help="one of the run's heads; default: all")
    sizes = predict.add_argument_group("sizes, of every cluster").add_argument
    for side, word in (("min", "at least"), ("max", "at most")):
        sizes(f"--{side}-size", type=int, metavar="N", help=f"images, {word}")
        sizes(f"--{side}-size-ratio", type=float, metavar="R", help=f"{word} R times images / K")
    predict.set_defaults(run=_predict)


def _add_common(verb: argparse.ArgumentParser, out: str) -> None:
    add = verb.add_argument
    add("data", metavar="DATA", help="images, as `coke pretrain` takes them; all splits")
    add("--out", type=Path, required=True, metavar="FILE", help=out)
    add("--overwrite", action="store_true", help="replace files that exist")
    add("--device", metavar="D", help="cpu or cuda; default: a GPU if there is one")
    add("--batch-size", type=int, metavar="B", help="images of one pass; default: what 64 MiB of input hold")
    add("--workers", type=int, metavar="W", help="processes that decode; default: the cores")
    for name in ("image", "label"):
        add(f"--{name}-column", metavar="NAME", help=f"of parquet and CSV; default: {name}")


def _embed(options: argparse.Namespace) -> int:
    from coke.model.command import embed

    with cleaning_up():
        embed(options)
    return 0


def _predict(options: argparse.Namespace) -> int:
    from coke.model.command import predict

    with cleaning_up():
        predict(options)
    return 0
