"""The two things people do with images: `pretrain` on them, and `evaluate` what was learned."""

from __future__ import annotations

import copy
import os
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

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
from coke.images import Splits, has_columns, open_data
from coke.images.unreadable import list_unreadable, listed_in
from coke.progress import progress_bar
from coke.report import write_report
from coke.run import Run
from coke.training.backbone import load_backbone
from coke.training.config import Config, without_fixed
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
        plan = make_plan(
            data,
            recipe,
            {**(overrides or {}), **keys},
            run=run if resume else None,
            backbone=backbone,
            progress=progress,
        )
    with run.alone():
        training = start(plan, run, backbone=backbone, resume=resume, console=console)
        try:
            training.fit(run)
            written = is_written(run, training)
            if not written:
                write_outputs(run, training)
        except DivergedError:
            if distributed.rank() == 0:
                write_report(run, plan.splits.train)
            raise
        finally:
            training.logbook.close()
        if distributed.rank() == 0 and not written:
            finish(run, plan.splits, training.config, backbone=backbone, console=console)
            mark_written(run, training)
        distributed.barrier()
    return run


def finish(
    run: Run,
    splits: Splits,
    config: Config,
    *,
    backbone: nn.Module | None = None,
    console: Console | None = None,
) -> None:
    """Evaluate a trained run where there are labels, and write its report."""
    if splits.bank is not None:
        try:
            evaluate_on(run, splits, config, backbone=backbone, console=console)
        except CokeError as error:  # the run is done: labels that no probe can use must not cost it
            run.write_json(run.evaluation_file, {"note": f"not evaluated: {error}"})
            if console is not None:
                console.print(f"not evaluated: {error}", highlight=False, markup=False, soft_wrap=True)
    write_report(run, splits.train)


def evaluate(
    run: Run | str | os.PathLike[str],
    data: str | os.PathLike[str] | None = None,
    *,
    backbone: nn.Module | None = None,
    augmented: bool = False,
    console: Console | None = None,
) -> dict[str, Any]:
    """Score a finished run again: k-NN, linear probes, clusters, beside raw pixels and the untrained network.

    Args:
        run: its folder.
        data: other images than those it was trained on, or their new place.
        backbone: an instance of the user's module, where the run has one.
        augmented: also the published linear probe, trained on augmented images (90 passes).
        console: where progress goes; None is silent.

    Returns:
        What evaluation.json then holds.

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
    try:
        _ = run.environment  # damaged, or of a newer coke: said before any work
    except (TypeError, ValueError) as error:
        raise ResumeError(f"{run.environment_file} is damaged ({error})") from error
    asked = data or config.data
    columns = {name: getattr(config, name) for name in ("image_column", "label_column")}
    if any(
        column != Config.model_fields[name].default for name, column in columns.items()
    ) and not has_columns(asked):
        columns = {}  # other images than the run's, in a folder
    with listed_in(run.evaluation_unreadable_file):
        splits = open_data(
            asked,
            seed=config.seed,
            max_unreadable_share=config.max_unreadable_share,
            max_image_pixels=config.max_image_pixels,
            **columns,
        )
    list_unreadable(run.evaluation_unreadable_file, splits.unreadable)
    if splits.unreadable and console is not None:
        left = f"{len(splits.unreadable):,} images cannot be read: {run.evaluation_unreadable_file} says why"
        console.print(left, highlight=False, markup=False, soft_wrap=True)
    if splits.bank is None:
        raise DataError(f"{splits.train.name}: {splits.note}; evaluation needs labels")
    evaluation = evaluate_on(run, splits, config, backbone=backbone, augmented=augmented, console=console)
    write_report(run, splits.train if _is_own(run, splits) else None)
    return evaluation


def evaluate_on(
    run: Run,
    splits: Splits,
    config: Config,
    *,
    backbone: nn.Module | None = None,
    augmented: bool = False,
    console: Console | None = None,
) -> dict[str, Any]:
    """`evaluate` with the images at hand: writes evaluation.json and prints the table."""
    bank, query = splits.bank, splits.query
    assert bank is not None
    assert query is not None
    assert bank.labels is not None
    assert query.labels is not None
    device = "cuda" if torch.cuda.is_available() and config.accelerator != "cpu" else "cpu"
    size = config.image_size
    mean, std = config.mean, config.std

    def features(network: nn.Module) -> tuple[Tensor, Tensor]:
        found = [
            extract(network, images, size=size, mean=mean, std=std, device=device) for images in (bank, query)
        ]
        return to_device(found[0], device), found[1]

    small = min(size, 32)
    bank_pixels, query_pixels = (
        raw_pixels(images, size=small, mean=mean, std=std) for images in (bank, query)
    )
    representations = {"raw pixels": (to_device(bank_pixels, device), query_pixels)}
    untrained = load_backbone(config, run.initial, copy.deepcopy(backbone))  # a user's module is one
    adapt_batch_norm(untrained, bank, size=size, mean=mean, std=std, device=device)
    representations["untrained"] = features(untrained)
    trained = load_backbone(config, run.backbone, backbone)
    representations["trained"] = features(trained)
    scores = evaluate_representations(
        representations,
        bank.labels,
        query.labels,
        linear=config.linear_probe,
        seed=config.seed,
    )
    if augmented:
        for name, network in (("untrained", untrained), ("trained", trained)):
            scores[name]["linear_augmented"] = augmented_linear_probe(
                network, bank, query, size=size, mean=mean, std=std, device=device, seed=config.seed
            )
    evaluation: dict[str, Any] = {
        "representations": scores,
        "heads": _heads(run) if _is_own(run, splits) else [],
        "split": splits.note,
        "raw_pixels_size": small,
    }
    run.write_json(run.evaluation_file, evaluation)
    if console is not None:
        console.print(table(scores), highlight=False, markup=False, soft_wrap=True)
        for head in evaluation["heads"]:
            shown = ", ".join(f"{key.upper()} {100 * head[key]:.1f}%" for key in ("nmi", "ari"))
            text = f"head {head['head']} ({head['used']} clusters used) against the labels: {shown}"
            console.print(text, highlight=False, markup=False, soft_wrap=True)
    return evaluation


def _check_data(data: Any) -> None:
    if data is not None and not isinstance(data, (str, os.PathLike)):
        raise ConfigError(f"DATA must be a path or the name of a data set, got {data!r}")


def _is_own(run: Run, splits: Splits) -> bool:
    """Whether these are the images that the run was trained on, wherever they lie."""
    return bool(splits.train.fingerprint == run.environment["data"]["fingerprint"])


def _heads(run: Run) -> list[dict[str, Any]]:
    """How far the run's own clusters agree with the labels, for the images that it was trained on."""
    import pyarrow.parquet as pq

    assignments = pq.read_table(run.assignments)
    if "label" not in assignments.column_names:
        return []
    columns = [name for name in assignments.column_names if name.startswith("cluster_")]
    clusters = torch.stack([torch.from_numpy(assignments[name].to_numpy().copy()) for name in columns], dim=1)
    labels = torch.from_numpy(assignments["label"].to_numpy().copy())
    known = labels >= 0
    return [dict(scores) for scores in head_scores(clusters[known], labels[known])]
