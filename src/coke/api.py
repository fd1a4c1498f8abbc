"""What people do with images: `pretrain` on them, `evaluate` what was learned, and look at it: `write_report`."""

from __future__ import annotations

import copy
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from coke import distributed
from coke.errors import CokeError, ConfigError, DataError, ResumeError
from coke.evaluation import (
    adapt_batch_norm,
    augmented_linear_probe,
    evaluate_representations,
    extract,
    head_scores,
    raw_pixels,
    table,
    to_device,
)
from coke.images import ImageSet, Splits, has_columns, open_data
from coke.images.unreadable import list_unreadable, listed_in
from coke.model.files import load
from coke.progress import progress_bar, say
from coke.report import write_page
from coke.run import Run
from coke.training.backbone import load_backbone
from coke.training.config import Config, without_fixed
from coke.training.map import write_map
from coke.training.monitor import DivergedError


def pretrain(
    data: str | os.PathLike[str] | None = None,
    recipe: str | None = None,
    out: str | os.PathLike[str] | None = None,
    *,
    backbone: nn.Module | str | None = None,
    resume: bool = False,
    console: Console | None = None,
    overrides: dict[str, Any] | None = None,
    **keys: Any,
) -> Run:
    """Learn a backbone from unlabelled images, and say whether it learned.

    Args:
        data: a folder of images, a list of paths (text, CSV), parquet, ``NAME:ROOT`` of a torchvision data
            set, or "textures", which is generated and the default.
        recipe: a name of `coke recipes`; default "textures" for that data, else "auto".
        out: the run folder; default ``runs/NAME``.
        backbone: any module [B, 3, H, W] -> [B, F] instead of the recipe's timm model, trained in place; or
            another name of timm's.
        resume: continue the run in ``out`` exactly where its newest checkpoint stands; its configuration holds
            for whatever is not given anew.
        console: where progress goes; None is silent, the files are written anyway.
        overrides: dotted keys of the configuration, such as ``{"objective.temperature": 0.2}``.
        keys: the same for keys without a dot, such as ``epochs=20``.

    Returns:
        The run folder, finished.

    Raises:
        CokeError: whatever cannot work, before any work.

    Examples:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> run = pretrain(out=folder + "/run", epochs=2, linear_probe=False, tensorboard=False)
        >>> sorted(run.evaluation["representations"])
        ['raw pixels', 'trained', 'untrained']
    """
    from coke.training.plan import default_folder, make_plan
    from coke.training.session import check_folder, is_written, mark_written, start, write_outputs

    _check_data(data)
    if isinstance(backbone, str):
        keys, backbone = {**keys, "backbone": backbone}, None
    if backbone is not None and not isinstance(backbone, nn.Module):
        raise ConfigError(f"backbone must be a module or the name of timm's, got {backbone!r}")
    run = Run(out if out is not None else default_folder(data, recipe))
    if not resume:
        check_folder(run)  # before images are read
    with progress_bar(console, "reading images") as progress, listed_in(run.unreadable_file):
        asked, going_on = {**(overrides or {}), **keys}, run if resume else None
        plan = make_plan(data, recipe, asked, run=going_on, backbone=backbone, progress=progress)
    with run.alone():
        training = start(plan, run, backbone=backbone, resume=resume, console=console)
        try:
            training.fit(run)
            written = is_written(run, training)
            if not written:
                write_outputs(run, training)
        except DivergedError:
            if distributed.rank() == 0:
                write_page(run, plan.splits.train)
            raise
        finally:
            training.logbook.close()
        if distributed.rank() == 0 and not written:
            with distributed.alone():
                _finish(run, plan.splits, training.config, backbone, console)
            mark_written(run, training)
        distributed.barrier()
    return run


def _finish(
    run: Run, splits: Splits, config: Config, backbone: nn.Module | None, console: Console | None
) -> None:
    """Evaluate a trained run where there are labels, and write its report."""
    if splits.bank is not None:
        try:
            scores = _scores(run, splits, config, backbone=backbone, console=console)
            run.write_json(run.evaluation_file, scores)
        except CokeError as error:  # the run is done: labels that no probe can use must not cost it
            run.write_json(run.evaluation_file, {"note": f"not evaluated: {error}"})
            say(console, f"not evaluated: {error}")
    write_page(run, splits.train)


def evaluate(
    run: Run | str | os.PathLike[str],
    data: str | os.PathLike[str] | None = None,
    *,
    backbone: nn.Module | None = None,
    augmented: bool = False,
    console: Console | None = None,
) -> dict[str, Any]:
    """Score a finished run again: k-NN, linear probes, clusters, beside raw pixels and the untrained network.

    The scores go into evaluation.json: those on the run's own images, in whatever order they come, in the first
    place; those on other images, or by other labels, under ``others`` and the data's name beside them.

    Args:
        run: its folder.
        data: other images than those it was trained on, or their new place.
        backbone: an instance of the user's module, where the run has one.
        augmented: also the published linear probe, trained on augmented images (90 passes).
        console: where progress goes; None is silent.

    Returns:
        The scores on this data.

    Raises:
        ResumeError: no finished run there.
        DataError: no labels to ask about.
    """
    _check_data(data)
    run = run if isinstance(run, Run) else Run(run)
    config = Config(**without_fixed(run.config)[0])
    if not run.backbone.is_file():
        raise ResumeError(
            f"{run.path} is not finished: {run.backbone.name} is missing; continue it with --resume"
        )
    _ = run.environment  # damaged, or of a newer coke: said before any work
    with listed_in(run.evaluation_unreadable_file):
        splits = open_data(
            data or run.data,
            max_unreadable_share=config.max_unreadable_share,
            max_image_pixels=config.max_image_pixels,
            **_as_in_training(run, data or run.data),
        )
    list_unreadable(run.evaluation_unreadable_file, splits.unreadable)
    if splits.unreadable:
        where = f"{run.evaluation_unreadable_file} says why"
        say(console, f"{len(splits.unreadable):,} images cannot be read: {where}")
    if splits.bank is None:
        raise DataError(f"{splits.train.name}: {splits.note}; evaluation needs labels")
    evaluation = _scores(run, splits, config, backbone=backbone, augmented=augmented, console=console)
    own = _is_own(run, splits)
    run.write_json(run.evaluation_file, _beside(run, evaluation, splits, data, own))
    write_page(run, splits.train if own else None, data if own else None)
    return evaluation


def write_report(run: Run | str | os.PathLike[str], data: str | os.PathLike[str] | None = None) -> Path:
    """Write a run's report.html again, from what lies in its folder, and return where it lies.

    Args:
        run: its folder, finished or not.
        data: where its images lie now, for pictures that the folder does not hold yet, and for the map of a run
            that was made by an older coke. They are known by their content.

    Raises:
        ResumeError: no run there.
        DataError: images that cannot be read, or none of the run's among them.
    """
    _check_data(data)
    run = run if isinstance(run, Run) else Run(run)
    if data is None:
        return write_page(run, None)
    asked = _as_in_training(run, data)
    images = open_data(data, max_unreadable_share=1.0, **asked).train
    here, contents = [row.tobytes() for row in images.hashes.numpy()], asked["contents"]
    if contents is not None and not set(contents) & set(here):
        raise DataError(
            f"{data} holds other images: none of the run's images is among the {len(here):,} there"
        )
    if here == contents and not run.map.is_file():
        _map_again(run, images)
    return write_page(run, images, data)


def _scores(
    run: Run,
    splits: Splits,
    config: Config,
    *,
    backbone: nn.Module | None,
    augmented: bool = False,
    console: Console | None,
) -> dict[str, Any]:
    """`evaluate` with the images at hand: prints the table and returns the scores."""
    bank, query = splits.bank, splits.query
    assert bank is not None
    assert query is not None
    assert bank.labels is not None
    assert query.labels is not None
    device = "cuda" if torch.cuda.is_available() and config.accelerator != "cpu" else "cpu"
    normal: dict[str, Any] = {"mean": config.mean, "std": config.std}
    seen = {**normal, "size": config.image_size, "device": device}
    small = min(config.image_size, 32)
    untrained = load_backbone(config, run.initial, copy.deepcopy(backbone))  # a user's module is one
    adapt_batch_norm(untrained, bank, **seen)
    networks = {"untrained": untrained, "trained": load_backbone(config, run.backbone, backbone)}
    found = {"raw pixels": [raw_pixels(images, size=small, **normal) for images in (bank, query)]}
    found |= {
        name: [extract(one, images, **seen) for images in (bank, query)] for name, one in networks.items()
    }
    representations = {name: (to_device(own, device), asked) for name, (own, asked) in found.items()}
    scores = evaluate_representations(
        representations, bank.labels, query.labels, linear=config.linear_probe, seed=config.seed
    )
    for name, network in networks.items() if augmented else ():
        score = augmented_linear_probe(network, bank, query, seed=config.seed, **seen)
        scores[name]["linear_augmented"] = score
    evaluation: dict[str, Any] = {
        "representations": scores,
        "heads": _heads(run, splits.train) if _is_own(run, splits) else [],
        "split": splits.note,
        "raw_pixels_size": small,
    }
    say(console, table(scores))
    for head in evaluation["heads"]:
        shown = ", ".join(f"{key.upper()} {100 * head[key]:.1f}%" for key in ("nmi", "ari"))
        say(console, f"head {head['head']} ({head['used']} clusters used) against the labels: {shown}")
    return evaluation


def _check_data(data: Any) -> None:
    if data is not None and not isinstance(data, (str, os.PathLike)):
        raise ConfigError(f"DATA must be a path or the name of a data set, got {data!r}")


def _as_in_training(run: Run, data: str | os.PathLike[str]) -> dict[str, Any]:
    """How `open_data` finds a run's own images again, in their order, and other ones by the same columns."""
    config, contents = run.config if run.config_file.is_file() else {}, None
    if run.assignments.is_file():
        table = run.read_assignments()
        contents = table["content"].to_pylist() if "content" in table.column_names else None
    names = ("image_column", "label_column") if has_columns(data) else ()
    columns = {name: config[name] for name in names if name in config}
    return {"seed": config.get("seed", 0), "contents": contents, **columns}


def _is_own(run: Run, splits: Splits) -> bool:
    """Whether these are the images that the run was trained on, wherever they lie."""
    return bool(splits.train.fingerprint == run.fingerprint)


def _beside(
    run: Run, scores: dict[str, Any], splits: Splits, data: str | os.PathLike[str] | None, own: bool
) -> dict[str, Any]:
    """What evaluation.json is to hold with new scores: no earlier ones are lost to those on other images or labels."""
    before = run.evaluation
    others = dict(before.pop("others", {}))
    first = before.get("representations")
    kept = {"others": others} if others else {}
    if own and (data is None or first is None):
        return {**scores, **kept}
    new = scores["representations"]
    if own and first is not None and all(first[name].items() <= new.get(name, {}).items() for name in first):
        return {**before, "representations": new, **kept}  # all that the first ones say, and perhaps more
    source = os.path.abspath(data) if data is not None and os.path.exists(data) else str(data)
    name, number = splits.train.name, 2
    while name in others and others[name]["source"] != source:
        name, number = f"{splits.train.name} ({number})", number + 1
    return {**before, "others": {**others, name: {**scores, "source": source}}}


def _heads(run: Run, images: ImageSet) -> list[dict[str, Any]]:
    """How far the run's own clusters agree with the labels of the images that it was trained on, in its order."""
    assignments = run.read_assignments()
    columns = [name for name in assignments.column_names if name.startswith("cluster_")]
    clusters = torch.stack([torch.from_numpy(assignments[name].to_numpy().copy()) for name in columns], dim=1)
    assert images.labels is not None
    known = images.labels >= 0
    return head_scores(clusters[known], images.labels[known])


def _map_again(run: Run, images: ImageSet) -> None:
    """map.parquet of a run that has none, where its model can be had."""
    with suppress(CokeError):  # a module of the user's own; then the page says that there is no map
        model = load(run.path)
        clusters = run.read_assignments()
        finest = max(range(len(model.heads)), key=lambda head: model.heads[head].n_clusters)
        centers, labels = model.heads[finest].cluster_centers_, clusters[f"cluster_{finest}"].to_numpy()
        write_map(run.map, model.embed(images, features="projection").numpy(), labels, centers, images)
