"""Does it learn? CIFAR-10 with one or two views, several seeds, beside the untrained network and raw pixels.

Trains with `coke.pretrain` on parquet files of CIFAR-10 and asks the test split: weighted k-NN on all of it
and on its first 2,000 images, a linear probe, k-means. ``--scale small`` is five convolutions for a CPU,
``--scale full`` the recipe's small-stem ResNet-18 for a GPU. One JSON per run with the scores and the curves
of the health figures; then a table over the seeds. A run folder that is finished is read, not trained again;
an interrupted one is resumed.

    python benchmarks/evidence.py --views 1 --seeds 0,1,2
    python benchmarks/evidence.py --views 2 --seeds 0,1,2 precision=bf16-mixed
    python benchmarks/evidence.py --scale full max_minutes=7 precision=bf16-mixed
    python benchmarks/evidence.py --record runs/cifar10        # a run that was made otherwise
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import _common as common

DATA = Path("../shared/data/cifar10")
FIRST = 2000  # test images of the second k-NN figure
RECIPES = {1: "cifar10", 2: "cifar10-2view"}
SMALL = {"warmup_epochs": 3, "averaging_share": 0.0, "knn_every": 3, "knn_images": 50_000}
FULL = {"knn_every": 50, "knn_images": 50_000}
QUICK = {"backbone": "coke_conv5_w16", "epochs": 2, "n_clusters": [10, 20], "knn_every": 1, "batch_size": 64}
SCORES = {"knn": "k-NN", "knn_first": f"k-NN, {FIRST}", "linear": "linear", "accuracy": "ACC", "nmi": "NMI"}
CURVES = (
    *("epoch", "loss", "ln_clusters", "churn", "label_agreement", "prediction_agreement", "feature_spread"),
    *("effective_rank", "data_wait", "images_per_second", "seconds", "learning_rate"),
)


def parse() -> argparse.Namespace:
    """The options; exits with a message where the images are not there."""
    parser = common.arguments(__doc__)
    parser.add_argument("--data", type=Path, default=DATA, help=f"folder of parquet files; default {DATA}")
    parser.add_argument("--views", type=int, default=1, choices=sorted(RECIPES))
    parser.add_argument("--seeds", default="0,1,2", help="comma-separated")
    parser.add_argument("--scale", default="small", choices=["small", "full"])
    parser.add_argument(
        "--backbone", default=None, help="default coke_conv5_w24, with --scale full the recipe's"
    )
    parser.add_argument("--epochs", type=int, default=None, help="default 22, with --scale full the recipe's")
    parser.add_argument("--runs", type=Path, default=Path("runs/evidence"), help="where run folders go")
    parser.add_argument("--tag", default="", help="added to the names of run folders and results")
    parser.add_argument(
        "--record", type=Path, nargs="+", default=None, help="finished run folders to score instead"
    )
    parser.add_argument("settings", nargs="*", metavar="key=value", help="any key of the configuration")
    options = parser.parse_intermixed_args()
    if not options.data.exists():
        sys.exit(
            f"{options.data} is not there: give --data, a folder of CIFAR-10 as parquet (train-*, test-*)"
        )
    return options


def overrides(options: argparse.Namespace) -> dict[str, Any]:
    """The scale's settings, then the options', then the user's keys."""
    from coke.training.settings import parse_overrides

    chosen: dict[str, Any] = {"tensorboard": False}
    if options.scale == "small":
        chosen |= SMALL | {"backbone": options.backbone or "coke_conv5_w24", "epochs": options.epochs or 22}
    else:
        chosen |= FULL
        chosen |= {"backbone": options.backbone} if options.backbone else {}
        chosen |= {"epochs": options.epochs} if options.epochs else {}
    chosen |= QUICK if options.quick else {}
    return chosen | parse_overrides(options.settings)


def train(options: argparse.Namespace, seed: int) -> Path:
    """A finished run folder of one seed."""
    from rich.console import Console

    import coke
    from coke.run import Run

    name = f"{RECIPES[options.views]}-{options.scale}{'-' + options.tag if options.tag else ''}-seed{seed}"
    run = Run(options.runs / name)
    if run.evaluation:
        print(f"{run.path}: finished already, not trained again")
        return run.path
    coke.pretrain(
        options.data,
        RECIPES[options.views],
        run.path,
        resume=run.latest_checkpoint() is not None,
        console=Console(),
        overrides={**overrides(options), "seed": seed},
    )
    return run.path


def score(folder: Path, data: Path) -> dict[str, Any]:
    """What a finished run says of itself, with k-NN on the first test images beside it."""
    from coke.run import Run

    run = Run(folder)
    representations = run.evaluation["representations"]
    for name, accuracy in first_images(run, data).items():
        representations[name]["knn_first"] = accuracy
    epochs = run.metrics("epoch")
    curves = {key: [record.get(key) for record in epochs] for key in CURVES}
    curves["heads"] = [[_head(head) for head in record["heads"]] for record in epochs]
    curves["verdict"] = [record["verdict"]["state"] for record in epochs]
    return {
        "run": folder.name,
        "seconds_of_training": sum(record["seconds"] for record in epochs),
        "split": run.evaluation["split"],
        "representations": representations,
        "heads": run.evaluation["heads"],
        "verdict": run.verdict,
        "knn_during_training": [[record["epoch"], record["accuracy"]] for record in run.metrics("knn")],
        "curves": curves,
        "config": {key: value for key, value in run.config.items() if key != "data"},
        "decisions": run.environment.get("decisions", []),
    }


def _head(head: dict[str, Any]) -> dict[str, Any]:
    return {key: head[key] for key in ("n_clusters", "used", "smallest", "largest", "bound")}


def first_images(run: Any, data: Path) -> dict[str, float]:
    """k-NN accuracy on the first test images, the whole train split as bank."""
    import timm
    import torch

    import coke.backbones  # noqa: F401 registers coke_*
    from coke.evaluation import adapt_batch_norm, extract, knn_accuracy, raw_pixels
    from coke.images import open_data

    config = run.config
    view = next(view for view in config["views"] if view["clusters"])
    size, normal = view["size"], {"mean": config["mean"], "std": config["std"]}
    splits = open_data(data, seed=config["seed"])
    bank, query = splits.bank, splits.query
    if bank is None or query is None:
        sys.exit(f"{data}: {splits.note}; there is nothing to compare with")
    query = query.subset(range(min(FIRST, len(query))))
    assert bank.labels is not None
    assert query.labels is not None
    device = "cuda" if torch.cuda.is_available() else "cpu"

    def load(path: Path) -> torch.nn.Module:
        return timm.create_model(config["backbone"], num_classes=0, checkpoint_path=str(path))

    untrained, trained = load(run.initial), load(run.backbone)
    adapt_batch_norm(untrained, bank, size=size, device=device, **normal)
    features = {"raw pixels": [raw_pixels(images, size=size, **normal) for images in (bank, query)]}
    for name, network in (("untrained", untrained), ("trained", trained)):
        features[name] = [
            extract(network, images, size=size, device=device, **normal) for images in (bank, query)
        ]
    return {name: knn_accuracy(b, bank.labels, q, query.labels) for name, (b, q) in features.items()}


def summarise(results: Sequence[dict[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """Per representation and score: mean, standard deviation, smallest, largest over the runs."""
    table: dict[str, dict[str, dict[str, float]]] = {}
    for name in results[0]["representations"]:
        table[name] = {}
        for key in SCORES:
            values = [result["representations"][name].get(key) for result in results]
            if None in values:
                continue
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            mean = statistics.fmean(values)
            table[name][key] = {"mean": mean, "sd": spread, "lowest": min(values), "highest": max(values)}
    return table


def print_table(results: Sequence[dict[str, Any]], table: dict[str, dict[str, dict[str, float]]]) -> None:
    """Scores over the seeds, then how each run went."""
    print(f"\n{len(results)} run(s); per cent, mean (standard deviation; lowest to highest)")
    for name, scores in table.items():
        print(f"  {name}")
        for key, label in SCORES.items():
            if key in scores:
                s = {k: 100 * value for k, value in scores[key].items()}
                print(
                    f"    {label:12} {s['mean']:5.1f} ({s['sd']:.1f}; {s['lowest']:.1f} to {s['highest']:.1f})"
                )
    for result in results:
        knn = ", ".join(f"{100 * accuracy:.1f}" for _, accuracy in result["knn_during_training"])
        agreement = [value for value in result["curves"]["label_agreement"] if value is not None]
        print(f"  {result['run']}: {result['verdict'].get('state')}; k-NN during training {knn} %")
        print(
            f"    labels kept beyond chance {100 * agreement[0]:.1f} -> {100 * agreement[-1]:.1f} %, effective rank "
            f"{result['curves']['effective_rank'][0]:.0f} -> {result['curves']['effective_rank'][-1]:.0f}, "
            f"{result['seconds_of_training'] / 60:.1f} minutes of training"
        )


def subset(data: Path, folder: Path) -> Path:
    """A few images of every split as parquet files of the same layout, for ``--quick``."""
    import pyarrow.parquet as pq

    for split, n_rows in (("train", 600), ("test", 200)):
        source = sorted(data.glob(f"{split}-*.parquet"))[0]
        pq.write_table(pq.read_table(source).slice(0, n_rows), folder / f"{split}-00000-of-00001.parquet")
    return folder


def main() -> None:
    """Train or read, score, print, write."""
    import torch

    options = parse()
    where = common.environment("cuda" if torch.cuda.is_available() else "cpu")
    common.print_environment(where)
    with tempfile.TemporaryDirectory() as temporary:
        if options.quick:
            (Path(temporary) / "data").mkdir()
            options.data = subset(options.data, Path(temporary) / "data")
            options.runs, options.seeds = Path(temporary) / "runs", "0"
        results = []
        for item in options.record or [int(seed) for seed in options.seeds.split(",")]:
            folder = item if isinstance(item, Path) else train(options, item)
            results.append(score(folder, options.data))
            if not options.quick:
                path = common.RESULTS / "evidence" / f"{folder.name}.json"
                common.write_json(path, {"environment": where, **results[-1]})
    table = summarise(results)
    print_table(results, table)
    name = f"evidence-{options.views}view-{options.scale}" + (f"-{options.tag}" if options.tag else "")
    names = [result["run"] for result in results]
    common.write_result(name, options, {"environment": where, "runs": names, "results": table})


if __name__ == "__main__":
    main()
