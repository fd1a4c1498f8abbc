"""The verbs of the command line and their options: a function for each, whose docstring is its help.

What carries them out is `coke.cli`'s to know.
"""

from __future__ import annotations

import argparse
from inspect import cleandoc
from pathlib import Path
from typing import Any

_FIRST_STEPS = """\
from a folder to answers:
  coke pretrain photos --dry-run                 what would happen, and how long it takes
  coke pretrain photos max_minutes=30            learn; runs/photos/report.html says whether it did
  coke evaluate runs/photos --data labelled      its scores, where there are labels
  coke report runs/photos                        its page again, at any time
  coke embed runs/photos photos --out photos.parquet
  coke cluster photos.parquet --k 20 --max-size-ratio 2 --metric cosine --out clusters.parquet
  coke predict runs/photos new-photos --out new.parquet
  coke explore runs/photos                       look at all of it in a browser
  coke curate runs/photos --n 1000 --out chosen.parquet   an even choice, without near-duplicates
  coke export runs/photos --to hf --out photos-model      for others; coke import reads the released CoKe

each verb says more: coke pretrain --help; coke recipes lists settings and networks"""


class _Help(argparse.HelpFormatter):
    """Wraps what is one paragraph, and keeps lines of examples as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if "\n" in text else super()._fill_text(text, width, indent)


def parser(version: str) -> argparse.ArgumentParser:
    """All verbs and their options."""
    said = "Learn image representations by online constrained k-means, and cluster under size bounds."
    top = argparse.ArgumentParser("coke", description=said, epilog=_FIRST_STEPS, formatter_class=_Help)
    top.add_argument("--version", action="version", version=f"coke {version}")
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")
    for declare in _VERBS:
        help, description, epilog = f"{cleandoc(declare.__doc__ or '')}\n\n\n\n".split("\n\n", 2)
        verb = verbs.add_parser(declare.__name__[1:], help=help, epilog=epilog.strip(), formatter_class=_Help)
        verb.description = " ".join(description.split())
        declare(verb)
    return top


def _pretrain(verb: argparse.ArgumentParser) -> None:
    """learn a backbone from unlabelled images

    Learn a backbone from unlabelled images. Without DATA: ten procedural textures, under three minutes on two CPU
    cores.

    key=value changes any key that `coke recipes NAME` shows, nested ones with dots:
      coke pretrain photos epochs=50 n_clusters=[100,200] objective.temperature=0.2 views.0.crop=[0.2,1]

    first:  coke pretrain photos --dry-run
    next:   coke evaluate runs/photos, or coke embed runs/photos photos --out photos.parquet
    """
    add = verb.add_argument
    said = (
        "a folder of images, a list of paths (text, CSV), parquet, NAME:ROOT of torchvision's, or 'textures'"
    )
    add("words", nargs="*", metavar="DATA | key=value", help=f"{said}; then any number of key=value")
    add("--recipe", metavar="NAME", help="see `coke recipes`; default: auto")
    add("--out", metavar="FOLDER", help="the run folder; default: runs/NAME")
    add("--resume", action="store_true", help="continue the run in the folder exactly")
    said = "go on from a finished run with images added or gone: its clusters keep their numbers"
    add("--continue", dest="continues", metavar="RUN", help=said)
    add("--dry-run", action="store_true", help="say what would happen, and stop")


def _evaluate(verb: argparse.ArgumentParser) -> None:
    """score a finished run with labels

    Score a finished run with labels: k-NN, linear probe and clusters, beside raw pixels and the untrained network.

    example:  coke evaluate runs/photos --data labelled
    next:     coke embed runs/photos photos --out photos.parquet
    """
    add = verb.add_argument
    add("run", metavar="RUN", help="the run folder")
    add("--data", metavar="DATA", help="other images, or the new place of the same")
    add("--augmented", action="store_true", help="also the published probe on augmented images (90 passes)")


def _report(verb: argparse.ArgumentParser) -> None:
    """write a run's page again

    Write a run's report.html again, from what lies in its folder.

    example:  coke report runs/photos
    before:   coke pretrain photos, whose last line says where the page lies
    """
    add = verb.add_argument
    add("run", metavar="RUN", help="the run folder, finished or not")
    add("--data", metavar="DATA", help="where its images lie now, for pictures that the folder lacks")


def _recipes(verb: argparse.ArgumentParser) -> None:
    """what recipes and networks there are; with a name, its configuration

    What recipes there are, and coke's own networks; with a recipe's name, its configuration.

    example:  coke recipes auto
    next:     coke pretrain photos --recipe auto --dry-run
    """
    add = verb.add_argument
    add("name", nargs="?", metavar="NAME")
    add("--schema", action="store_true", help="its configuration's JSON schema, for editors, with defaults")


def _embed(verb: argparse.ArgumentParser) -> None:
    """features of images, into a file that `coke cluster` takes

    Write the features of every image of DATA, in order, with its key. Asked for the same again, an interrupted one
    goes on where it was.

    examples:  coke embed runs/photos photos --out photos.parquet
               coke embed resnet18 photos --weights resnet18.safetensors --out photos.parquet
    next:      coke cluster photos.parquet --k 20 --metric cosine --out clusters.parquet
    """
    add = verb.add_argument
    add("model", metavar="RUN|NAME", help="a run folder, or the name of any of timm's models")
    _add_images(verb, "a .parquet (key, label, embedding) or .npy file")
    add("--weights", type=Path, metavar="FILE", help="of NAME; default: the published ones")
    said = "pooled backbone features (default), or the unit vectors that a run's clusters are made of"
    add("--features", choices=("backbone", "projection"), default="backbone", help=said)
    add("--tokens", action="store_true", help="a row for each patch or position, before pooling")
    add("--dtype", choices=("float16", "float32"), default="float32", help="of the numbers; default: float32")


def _predict(verb: argparse.ArgumentParser) -> None:
    """which of a run's clusters other images belong to

    Put every image of DATA into the clusters of a run, by the run's numbers: each into the nearest, or, where sizes
    are given, so that these hold among the new images.

    example:  coke predict runs/photos new-photos --out new.parquet --max-size-ratio 2
    before:   coke pretrain photos, whose clusters these are
    """
    verb.add_argument("model", metavar="RUN", help="a run folder")
    _add_images(verb, ".parquet: key, and per head cluster, score, margin, second")
    verb.add_argument("--head", type=int, metavar="H", help="one of the run's heads; default: all")
    _add_sizes(verb, "images")


def _export(verb: argparse.ArgumentParser) -> None:
    """a run for timm, a hub, torchvision or ONNX, checked

    Write a run as others load it. What is written is loaded again and compared with coke's own features first; the
    result of that is printed, with the code that loads it.

    example:  coke export runs/birds --to hf --out birds
    example:  coke export runs/birds --to onnx --predict --out birds.onnx
    before:   coke predict runs/birds new-photographs --out clusters.parquet
    """
    add = verb.add_argument
    add("run", metavar="RUN", help="a run folder")
    said = (
        "timm, torchvision: a .safetensors file of weights; hf: a folder with model card, which timm loads; onnx: a "
        ".onnx graph; safetensors: a folder with the whole model, for coke"
    )
    formats = ("timm", "hf", "torchvision", "onnx", "safetensors")
    add("--to", required=True, choices=formats, help=said)
    add("--out", type=Path, required=True, metavar="PATH", help="the file or folder")
    add("--predict", action="store_true", help="of onnx: the graph gives projections and clusters too")
    add("--head", type=int, metavar="H", help="with --predict: clusters of this head alone; default: of all")
    add("--overwrite", action="store_true", help="replace an earlier export")


def _import(verb: argparse.ArgumentParser) -> None:
    """a checkpoint of the released CoKe, for coke

    Make a folder that embed, predict and export take of a checkpoint of the released CoKe implementation
    (ResNet-50).

    example:  coke import coke_single_view.pth.tar --out released
    next:     coke embed released photographs --out photographs.parquet
    """
    add = verb.add_argument
    add("checkpoint", type=Path, metavar="CHECKPOINT", help="the .pth.tar file")
    add("--out", type=Path, required=True, metavar="FOLDER", help="the folder")
    add("--overwrite", action="store_true", help="replace an earlier one")


def _cluster(verb: argparse.ArgumentParser) -> None:
    """cluster vectors, with sizes that hold

    Cluster vectors by k-means whose cluster sizes hold, and say how far from optimal it can be.

    example:  coke cluster photos.parquet --k 20 --max-size-ratio 2 --metric cosine --out clusters.parquet
    next:     coke assign clusters.safetensors new.parquet --out new-clusters.parquet
    before:   coke embed, for images
    With several processes or machines: torchrun --nproc-per-node=4 -m coke cluster ...
    """
    add = verb.add_argument
    add("--k", type=int, metavar="K", help="how many clusters")
    add("--metric", choices=("euclidean", "cosine"), help="default: euclidean")
    add("--init", choices=("k-means++", "random"), help="how to start; default: k-means++")
    said = "earlier clusters to go on from, by their numbers"
    add("--start", type=Path, dest="file", metavar="FILE", help=said)
    add("--n-init", type=int, metavar="N", help="starts, of which the best is kept; default: 1, or 10 random")
    add("--max-iter", type=int, metavar="N", help="moves of the centers, at most; default: 300")
    add("--tol", type=float, metavar="T", help="end before the fixed point; default: 0, at it")
    add("--seed", type=int, default=0, metavar="S", help="of the start; default: 0")
    add("--centers", type=Path, metavar="FILE", help="where clusters go, .safetensors; default: beside --out")
    _add_vectors(verb, "DATA")


def _assign(verb: argparse.ArgumentParser) -> None:
    """put other vectors into the clusters of an earlier run

    Put other vectors into the clusters of an earlier run: each into the nearest, or, where sizes are given, so that
    these hold among the new vectors.

    example:  coke assign clusters.safetensors new.parquet --out new-clusters.parquet --max-size-ratio 2
    before:   coke cluster, or coke pretrain, which write clusters.safetensors; coke predict is for images
    """
    verb.add_argument("file", type=Path, metavar="FILE", help="what `coke cluster` or `coke pretrain` wrote")
    verb.set_defaults(centers=None)
    _add_vectors(verb, "NEW_DATA")


def _explore(verb: argparse.ArgumentParser) -> None:
    """look at a run or at embeddings in a browser: map, pictures, neighbours, clusters

    Place all rows on a map, with pictures, neighbours and clusters, and open them in the explorer of embedding-
    atlas, which this machine alone can reach. None is left out.

    examples:  coke explore runs/photos
               coke explore photos.parquet --data photos --clusters clusters.parquet
               coke explore runs/photos --export photos-explorer
    before:    coke pretrain; or coke embed and coke cluster
    needs:     pip install 'coke-ssl[explore]', or uvx on the PATH
    """
    add = verb.add_argument
    said = "a run folder; or vectors: .parquet, .npy, a folder of them"
    add("what", type=Path, metavar="RUN|EMBEDDINGS", help=said)
    add("--data", metavar="DATA", help="the images, for pictures; of a run: where they lie now")
    add("--clusters", type=Path, metavar="FILE", help="of embeddings: what `coke cluster` or `predict` wrote")
    add("--head", type=int, metavar="H", help="whose clusters, if there are several heads; default: 0")
    add("--k", type=int, metavar="K", help="of embeddings: make K clusters by cosine; default: none")
    add("--map", choices=("umap", "pca"), help="default: umap where umap-learn is installed, else pca")
    add("--seed", type=int, default=0, metavar="S", help="of UMAP and of --k; default: 0")
    _add_column(verb)
    add("--image-column", metavar="NAME", help="of DATA in parquet or CSV; default: image")
    add = verb.add_argument_group("what becomes of it").add_argument
    add("--out", type=Path, metavar="FILE", help="keep the table, .parquet, and labels beside it")
    add("--overwrite", action="store_true", help="replace files that exist")
    add("--export", type=Path, metavar="FOLDER", help="a static copy for any web server, in place of serving")
    add("--no-serve", action="store_true", help="write --out, and end")
    add("--host", default="127.0.0.1", metavar="H", help="127.0.0.1, and no other")
    add("--port", type=int, metavar="P", help="default: the first free one from 5055 on")


def _curate(verb: argparse.ArgumentParser) -> None:
    """choose images: even over clusters, without near-duplicates

    Choose M images or rows, even over bounded clusters: near-duplicates go, rare clusters stay. Writes the list, a
    table of what went and why, and a page that shows both.

    examples:  coke curate runs/photos --n 5000 --out chosen.parquet
               coke curate photos.parquet --data photos --n 5000 --out chosen.parquet
    next:      coke pretrain chosen.parquet
    before:    coke pretrain, or coke embed
    """
    add = verb.add_argument
    add("data", metavar="RUN|EMBEDDINGS", help="a run folder, or .npy, .parquet or a folder of them")
    add("--n", type=int, required=True, metavar="M", help="how many to choose")
    said = ".parquet: row, key, image, cluster, priority, why; beside it NAME.dropped.parquet and NAME.html"
    add("--out", type=Path, required=True, metavar="FILE", help=said)
    said = "the images of EMBEDDINGS, for pictures and paths; of RUN: their new place"
    add("--data", dest="images", metavar="DATA", help=said)
    said = "cosine from which a row is a duplicate; above 1 none is; default: what the data say"
    add("--similarity", type=float, metavar="C", help=said)
    add("--clusters", dest="n_clusters", type=int, metavar="K", help="default: RUN's own, else the root of N")
    _add_column(verb)
    add("--seed", type=int, default=0, metavar="S", help="the same gives the same choice; default: 0")
    add("--overwrite", action="store_true", help="replace files that exist")


def _add_column(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--column", metavar="NAME", help="of parquet: where vectors are, if there are several")


def _add_images(verb: argparse.ArgumentParser, out: str) -> None:
    add = verb.add_argument
    add("data", metavar="DATA", help="images, as `coke pretrain` takes them; all splits")
    add("--out", type=Path, required=True, metavar="FILE", help=out)
    add("--overwrite", action="store_true", help="replace files that exist")
    add("--device", metavar="D", help="cpu or cuda; default: a GPU if there is one")
    add("--batch-size", type=int, metavar="B", help="images of one pass; default: what 64 MiB of input hold")
    said = "processes that decode; default: the cores beside a GPU, else 0"
    add("--workers", type=int, metavar="W", help=said)
    said = "larger images are not decoded, but listed as unreadable; default: the run's, else 200000000"
    add("--max-image-pixels", type=int, metavar="N", help=said)
    for name in ("image", "label"):
        add(f"--{name}-column", metavar="NAME", help=f"of parquet and CSV; default: {name}")


def _add_vectors(verb: argparse.ArgumentParser, data: str) -> None:
    add = verb.add_argument
    add("data", type=Path, metavar=data, help=".npy, .parquet or a folder of them")
    add("--head", type=int, default=0, metavar="H", help="of clusters that coke pretrain wrote; default: 0")
    _add_column(verb)
    said = "of parquet: a column that goes into --out beside each row; default: key, if any"
    add("--id", metavar="NAME", help=said)
    add("--device", default="cpu", metavar="D", help="cpu (default) or cuda")
    said = ".parquet: row, cluster, distance to its center, margin to the nearest other, which that is"
    add("--out", type=Path, required=True, metavar="FILE", help=said)
    add("--overwrite", action="store_true", help="replace files that exist")
    said = "a line for each cluster: what it may hold, or what it must and what it may"
    sizes = _add_sizes(verb, "rows")
    sizes.add_argument("--sizes", type=Path, metavar="FILE", help=f".npy, or text with {said}")


def _add_sizes(verb: argparse.ArgumentParser, things: str) -> Any:
    group = verb.add_argument_group("sizes, of every cluster")
    for side, word in (("min", "at least"), ("max", "at most")):
        group.add_argument(f"--{side}-size", type=int, metavar="N", help=f"{things}, {word}")
        ratio = f"{word} R times {things} / K"
        group.add_argument(f"--{side}-size-ratio", type=float, metavar="R", help=ratio)
    return group


_VERBS = (
    *(_pretrain, _evaluate, _report, _recipes, _embed, _predict, _export, _import),
    *(_cluster, _assign, _explore, _curate),
)
