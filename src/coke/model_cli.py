"""The verbs for a trained model, `coke embed`, `predict`, `export` and `import`: their arguments."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from coke.interrupt import cleaning_up


def add_verbs(verbs: Any) -> None:
    """Add them to the subparsers of `coke.cli`."""
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
    embed.set_defaults(run=_run, carry_out="embed")

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
    predict.set_defaults(run=_run, carry_out="predict")
    _add_export(verbs)
    _add_import(verbs)


def _add_export(verbs: Any) -> None:
    export = verbs.add_parser(
        "export",
        help="a run for timm, a hub, torchvision or ONNX, checked",
        description="Write a run as others load it. What is written is loaded again and compared with coke's own "
        "features first; the result of that is printed, with the code that loads it.",
        epilog="""\
example:  coke export runs/birds --to hf --out birds
example:  coke export runs/birds --to onnx --predict --out birds.onnx
before:   coke predict runs/birds new-photographs --out clusters.parquet""",
    )
    add = export.add_argument
    add("model", metavar="RUN", help="a run folder")
    add(
        "--to",
        required=True,
        choices=("timm", "hf", "torchvision", "onnx", "safetensors"),
        help="timm, torchvision: a .safetensors file of weights; hf: a folder with model card, which timm loads; "
        "onnx: a .onnx graph; safetensors: a folder with the whole model, for coke",
    )
    add("--out", type=Path, required=True, metavar="PATH", help="the file or folder")
    add("--predict", action="store_true", help="of onnx: the graph gives projections and clusters too")
    add("--head", type=int, metavar="H", help="with --predict: clusters of this head alone; default: of all")
    add("--overwrite", action="store_true", help="replace an earlier export")
    export.set_defaults(run=_run, carry_out="export_run")


def _add_import(verbs: Any) -> None:
    add_import = verbs.add_parser(
        "import",
        help="a checkpoint of the released CoKe, for coke",
        description="Make a folder that embed, predict and export take of a checkpoint of the released CoKe "
        "implementation (ResNet-50).",
        epilog="""\
example:  coke import coke_single_view.pth.tar --out released
next:     coke embed released photographs --out photographs.parquet""",
    )
    add = add_import.add_argument
    add("checkpoint", type=Path, metavar="CHECKPOINT", help="the .pth.tar file")
    add("--out", type=Path, required=True, metavar="FOLDER", help="the folder")
    add("--overwrite", action="store_true", help="replace an earlier one")
    add_import.set_defaults(run=_run, carry_out="import_checkpoint")


def _add_common(verb: argparse.ArgumentParser, out: str) -> None:
    add = verb.add_argument
    add("data", metavar="DATA", help="images, as `coke pretrain` takes them; all splits")
    add("--out", type=Path, required=True, metavar="FILE", help=out)
    add("--overwrite", action="store_true", help="replace files that exist")
    add("--device", metavar="D", help="cpu or cuda; default: a GPU if there is one")
    add("--batch-size", type=int, metavar="B", help="images of one pass; default: what 64 MiB of input hold")
    add(
        "--workers",
        type=int,
        metavar="W",
        help="processes that decode; default: the cores beside a GPU, else 0",
    )
    add(
        "--max-image-pixels",
        type=int,
        metavar="N",
        help="larger images are not decoded, but listed as unreadable; default: the run's, else 200000000",
    )
    for name in ("image", "label"):
        add(f"--{name}-column", metavar="NAME", help=f"of parquet and CSV; default: {name}")


def _run(options: argparse.Namespace) -> int:
    from coke.model import command

    with cleaning_up():
        getattr(command, options.carry_out)(options)
    return 0
