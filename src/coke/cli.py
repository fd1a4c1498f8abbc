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
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

from coke import __version__, verbs
from coke.errors import CokeError, ConfigError
from coke.interrupt import cleaning_up

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
        # training minds SIGTERM itself; elsewhere files that are half written are removed
        with nullcontext() if options.verb == "pretrain" else cleaning_up():
            return _work_of(options.verb)(options) or 0
    except BrokenPipeError:
        raise
    except (CokeError, OSError) as error:  # OSError: a full disk, a folder that may not be read
        print(f"coke: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # outside of training, which writes a checkpoint instead
        print("coke: interrupted", file=sys.stderr)
        return 130


def parser() -> argparse.ArgumentParser:
    """All verbs and their options."""
    return verbs.parser(__version__)


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

    asked = {"resume": options.resume, "console": Console(), "overrides": overrides}
    try:
        run = pretrain(data, options.recipe, options.out, **asked)
    except Stopped as stopped:
        print(f"coke: {stopped}", file=sys.stderr)
        return 128 + stopped.signal_number
    if int(os.environ.get("RANK", "0")) == 0:
        said = run.verdict
        print(f"{said['state']}: {said['text']}" + (f"; {said['action']}" if said["action"] else ""))
        print(f"report: {run.report}")
        print(f"backbone: {run.backbone} (for timm: {run.environment['backbone']['loads_with']})")
    return 0


def _split_words(words: list[str]) -> tuple[str | None, list[str]]:
    """DATA and the key=value words; a path that exists is never taken for a key."""
    data = [word for word in words if not _KEY.match(word) or os.path.exists(word)]
    if len(data) > 1:
        raise ConfigError(f"one DATA at a time, got {', '.join(data)}; settings are written key=value")
    return (data[0] if data else None), [word for word in words if word not in data]


def _evaluate(options: argparse.Namespace) -> None:
    from rich.console import Console

    from coke.api import evaluate

    evaluate(options.run, options.data, augmented=options.augmented, console=Console())


def _report(options: argparse.Namespace) -> None:
    from coke.api import write_report

    print(f"report: {write_report(options.run, options.data)}")


def _recipes(options: argparse.Namespace) -> None:
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
        return
    recipe = find_recipe(options.name)
    import yaml

    from coke.training.auto import template
    from coke.training.config import schema

    if options.schema:
        print(json.dumps(schema(template(recipe)), indent=2))
        return
    print(f"# {recipe.summary}")
    print("# auto: settled from the images when a run starts; see it with --dry-run")
    print(yaml.safe_dump(template(recipe), sort_keys=False), end="")


def _export(options: argparse.Namespace) -> None:
    from coke.model.export import export

    done = export(**_keys(options))
    print(f"parity: {done.parity}\n{done.path}: {done.loads_with}")


def _import(options: argparse.Namespace) -> None:
    from coke.model.released import import_released

    done = import_released(**_keys(options))
    print("\n".join([*(f"taken: {taken}" for taken in done.taken), *(f"left: {left}" for left in done.left)]))
    use = f'coke embed {done.path} DATA, coke predict {done.path} DATA, coke.load("{done.path}")'
    print(f"parity: {done.parity}\n{done.path}: {use}")


def _curate(options: argparse.Namespace) -> None:
    from rich.console import Console

    from coke.curation import curate

    curate(**_keys(options), console=Console(highlight=False, markup=False, soft_wrap=True))


def _keys(options: argparse.Namespace) -> dict[str, Any]:
    """Options as the arguments of the function that they are named after."""
    return {name: value for name, value in vars(options).items() if name != "verb"}


def _work_of(verb: str) -> Callable[[argparse.Namespace], int | None]:
    """What carries a verb out. It is loaded now: who asks for another verb, or for help, should not pay for it."""
    if verb in ("cluster", "assign"):
        from coke.bounded.command import run

        return run
    if verb in ("embed", "predict"):
        from coke.model import command

        return command.embed if verb == "embed" else command.predict
    if verb == "explore":
        from coke.explore.command import explore

        return explore
    own = {"evaluate": _evaluate, "report": _report, "recipes": _recipes}
    return {"pretrain": _pretrain, **own, "export": _export, "import": _import, "curate": _curate}[verb]
