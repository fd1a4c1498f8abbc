"""The command line: few verbs, one generic ``key=value``, one line for an error.

Exit codes: 0 done; 1 refused or failed, with a line on stderr; 2 a malformed command line; 128 + n stopped by
signal n, in training with a checkpoint written; 141 nobody reads the output any more.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Sequence
from typing import Any

from coke import __version__, cluster_cli, curate_cli, explore_cli, model_cli
from coke.errors import CokeError, ConfigError

FIRST_STEPS = """\
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
_KEY = re.compile(r"([A-Za-z_][\w.]*)?=")  # =value is no DATA either: it lacks its key


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code."""
    try:
        try:
            return _run(arguments)
        finally:  # the interpreter's own flush, at exit, would complain of a closed pipe
            print(end="", flush=True)
    except BrokenPipeError:  # `coke ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is still to be flushed
        return 141  # as of a program that SIGPIPE ends


def _run(arguments: Sequence[str] | None) -> int:
    top = parser()
    options, rest = top.parse_known_args(arguments)
    if any(word.startswith("-") for word in rest) or (rest and options.verb != "pretrain"):
        top.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:  # argparse stops collecting DATA and key=value words at the first option
        options.words += rest
    try:
        return int(options.run(options))
    except CokeError as error:
        print(f"coke: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        raise
    except OSError as error:  # a full disk, a folder that may not be read
        print(f"coke: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # outside of training, which writes a checkpoint instead
        print("coke: interrupted", file=sys.stderr)
        return 130


def parser() -> argparse.ArgumentParser:
    """All verbs and their options."""
    top = argparse.ArgumentParser(
        prog="coke",
        description="Learn image representations by online constrained k-means, and cluster under size bounds.",
        epilog=FIRST_STEPS,
    )
    top.add_argument("--version", action="version", version=f"coke {__version__}")
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")

    _add_pretrain(verbs)
    _add_evaluate(verbs)
    _add_report(verbs)
    _add_recipes(verbs)
    model_cli.add_verbs(verbs)
    cluster_cli.add_verbs(verbs)
    explore_cli.add_verbs(verbs)
    curate_cli.add_verbs(verbs)
    for one in (top, *verbs.choices.values()):
        one.formatter_class = _Help
    return top


def _add_pretrain(verbs: Any) -> None:
    """Learning from images."""
    pretrain = verbs.add_parser(
        "pretrain",
        help="learn a backbone from unlabelled images",
        description="Learn a backbone from unlabelled images. Without DATA: ten procedural textures, under three "
        "minutes on two CPU cores.",
        epilog="""\
key=value changes any key that `coke recipes NAME` shows, nested ones with dots:
  coke pretrain photos epochs=50 n_clusters=[100,200] objective.temperature=0.2 views.0.crop=[0.2,1]

first:  coke pretrain photos --dry-run
next:   coke evaluate runs/photos, or coke embed runs/photos photos --out photos.parquet""",
    )
    pretrain.add_argument(
        "words",
        nargs="*",
        metavar="DATA | key=value",
        help="a folder of images, a text or CSV list of paths, parquet, NAME:ROOT of a torchvision data set, or "
        "'textures'; then any number of key=value",
    )
    pretrain.add_argument("--recipe", metavar="NAME", help="see `coke recipes`; default: auto")
    pretrain.add_argument("--out", metavar="FOLDER", help="the run folder; default: runs/NAME")
    pretrain.add_argument("--resume", action="store_true", help="continue the run in the folder exactly")
    pretrain.add_argument(
        "--continue",
        dest="continues",
        metavar="RUN",
        help="go on from a finished run with images added or gone: its clusters keep their numbers",
    )
    pretrain.add_argument("--dry-run", action="store_true", help="say what would happen, and stop")
    pretrain.set_defaults(run=_pretrain)


def _add_evaluate(verbs: Any) -> None:
    """Scores with labels."""
    evaluate = verbs.add_parser(
        "evaluate",
        help="score a finished run with labels",
        description="Score a finished run with labels: k-NN, linear probe and clusters, beside raw pixels and the "
        "untrained network.",
        epilog="""\
example:  coke evaluate runs/photos --data labelled
next:     coke embed runs/photos photos --out photos.parquet""",
    )
    evaluate.add_argument("folder", metavar="RUN", help="the run folder")
    evaluate.add_argument("--data", metavar="DATA", help="other images, or the new place of the same")
    evaluate.add_argument(
        "--augmented",
        action="store_true",
        help="also the published linear probe on augmented images (90 passes)",
    )
    evaluate.set_defaults(run=_evaluate)


def _add_report(verbs: Any) -> None:
    """A run's page."""
    report = verbs.add_parser(
        "report",
        help="write a run's page again",
        description="Write a run's report.html again, from what lies in its folder.",
        epilog="""\
example:  coke report runs/photos
before:   coke pretrain photos, whose last line says where the page lies""",
    )
    report.add_argument("folder", metavar="RUN", help="the run folder, finished or not")
    report.add_argument(
        "--data",
        metavar="DATA",
        help="where its images lie now, for pictures that the folder does not hold yet",
    )
    report.set_defaults(run=_report)


def _add_recipes(verbs: Any) -> None:
    """Recipes and networks."""
    recipes = verbs.add_parser(
        "recipes",
        help="what recipes and networks there are; with a name, its configuration",
        description="What recipes there are, and coke's own networks; with a recipe's name, its configuration.",
        epilog="""\
example:  coke recipes auto
next:     coke pretrain photos --recipe auto --dry-run""",
    )
    recipes.add_argument("name", nargs="?", metavar="NAME")
    recipes.add_argument(
        "--schema",
        action="store_true",
        help="the JSON schema of its configuration, for editors, with its defaults",
    )
    recipes.set_defaults(run=_recipes)


class _Help(argparse.HelpFormatter):
    """Wraps what is one paragraph, and keeps lines of examples as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if "\n" in text else super()._fill_text(text, width, indent)


def _pretrain(options: argparse.Namespace) -> int:
    data, assignments = _split_words(options.words)
    from rich.console import Console

    from coke.training.loop import Stopped
    from coke.training.settings import parse_overrides

    overrides = parse_overrides(assignments)
    if options.continues is not None:
        overrides["continues"] = options.continues
    if options.dry_run:
        from coke.training.dry_run import describe

        for line in describe(data, options.recipe, overrides, options.out):
            print(line)
        return 0
    from coke.api import pretrain

    try:
        run = pretrain(
            data,
            options.recipe,
            options.out,
            resume=options.resume,
            console=Console(),
            overrides=overrides,
        )
    except Stopped as stopped:
        print(f"coke: {stopped}", file=sys.stderr)
        return 128 + stopped.signal_number
    if int(os.environ.get("RANK", "0")) == 0:
        verdict = run.verdict
        print(
            f"{verdict['state']}: {verdict['text']}" + (f"; {verdict['action']}" if verdict["action"] else "")
        )
        print(f"report: {run.report}")
        print(f"backbone: {run.backbone} (for timm: {run.environment['backbone']['loads_with']})")
    return 0


def _split_words(words: list[str]) -> tuple[str | None, list[str]]:
    """DATA and the key=value words; a path that exists is never taken for a key."""
    data = [word for word in words if not _KEY.match(word) or os.path.exists(word)]
    if len(data) > 1:
        raise ConfigError(f"one DATA at a time, got {', '.join(data)}; settings are written key=value")
    return (data[0] if data else None), [word for word in words if word not in data]


def _evaluate(options: argparse.Namespace) -> int:
    from rich.console import Console

    from coke.api import evaluate

    evaluate(options.folder, options.data, augmented=options.augmented, console=Console())
    return 0


def _report(options: argparse.Namespace) -> int:
    from coke.api import write_report

    print(f"report: {write_report(options.folder, options.data)}")
    return 0


def _recipes(options: argparse.Namespace) -> int:
    from coke.training.recipes import RECIPES, find_recipe, own_backbones

    if options.name is None:
        if options.schema:
            raise ConfigError("--schema goes with the name of a recipe, whose figures are the defaults")
        backbones = own_backbones()
        width = max(map(len, [*RECIPES, *backbones]))
        for recipe in RECIPES.values():
            print(f"{recipe.name:{width}}  {recipe.summary}")
        print("\nnetworks for small images, beside all of timm's (backbone=NAME):")
        for name, summary in backbones.items():
            print(f"{name:{width}}  {summary}")
        return 0
    recipe = find_recipe(options.name)
    from coke.training.auto import template
    from coke.training.config import schema

    if options.schema:
        print(json.dumps(schema(template(recipe)), indent=2))
        return 0
    import yaml

    print(f"# {recipe.summary}")
    print("# auto: settled from the images when a run starts; see it with --dry-run")
    print(yaml.safe_dump(template(recipe), sort_keys=False), end="")
    return 0
