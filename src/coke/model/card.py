"""The model card of an export: what the weights learned from, how, what was measured, and what they are not for.

It goes where other people read it, so it names no path of the machine it was made on.
"""

from __future__ import annotations

import re
from typing import Any

from coke.evaluation import table
from coke.model.model import Model
from coke.run import Run

_SETTINGS = (
    "recipe", "epochs", "batch_size", "optimizer", "learning_rate", "weight_decay", "n_clusters", "min_size_ratio",
    "dim", "objective", "seed",
)  # fmt: skip
_FEW = 10_000  # images, below which training from scratch finds little

_NOT_KNOWN = "Not known: the folder that this was exported from does not say."
_CARD = """\
---
library_name: timm
pipeline_tag: image-feature-extraction
tags: [coke, timm, self-supervised-learning]
---

# {title}

Features of images, by {architecture}, learned without labels by online constrained k-means (CoKe,
[arXiv 2105.11527](https://arxiv.org/abs/2105.11527)). There is no classifier on top: an image gives {n_features:,}
numbers.

```python
{loads}
```

## Data

{data}

Images are resized so that their shorter side has {seen.shorter} px ({seen.interpolation}); the centre of {seen.size} px
is cut out and normalised with mean {mean} and standard deviation {std}.

## Settings

{settings}

## Measured

{scores}

## Limits

{limits}
"""


def model_card(model: Model, run: Run, loads_with: str) -> str:
    """Markdown, from what the run's folder says; where it says nothing, the card says so."""
    from coke.model.parity import pixels

    config = run.config if run.config_file.is_file() else {}
    environment, seen = run.environment, model.preprocessing
    data = environment.get("data", {})
    name, n_images = _without_path(str(data.get("name", ""))), data.get("n_images")
    known = f"{n_images:,} images of {name}, without their labels." if n_images is not None else _NOT_KNOWN
    return _CARD.format(
        title=f"{model.name}{f' of {name}' if name else ''}",
        architecture=model.name,
        n_features=model.features(pixels(model)[:1]).shape[1],
        loads=loads_with.replace("; ", "\n"),
        data=known,
        seen=seen,
        mean=[round(value, 4) for value in seen.mean],
        std=[round(value, 4) for value in seen.std],
        settings=_settings(config, environment),
        scores=_scores(run.evaluation, run.verdict),
        limits=_limits(name, n_images, config, run.evaluation),
    )


def _without_path(text: str) -> str:
    return re.sub(r"\S*[/\\](?=[^/\\])", "", text)


def _settings(config: dict[str, Any], environment: dict[str, Any]) -> str:
    if not config:
        return _NOT_KNOWN
    start = config.get("init")
    settings = {key: config[key] for key in _SETTINGS if key in config}
    settings["start"] = "random weights" if start is None else f"weights of {_without_path(str(start))}"
    sizes = [f"{view['count']} of {view['size']} px" for view in config.get("views", [])]
    settings["views"] = ", ".join(sizes)
    settings["coke"] = environment.get("versions", {}).get("coke", "not known")
    return "\n".join(f"- {key}: {value}" for key, value in settings.items())


def _scores(evaluation: dict[str, Any], verdict: dict[str, Any]) -> str:
    scores, shown = evaluation.get("representations"), "Nothing: there were no labels to measure with."
    if scores:
        rows = "\n".join(f"    {line}" for line in table(scores).splitlines())
        shown = f"Frozen features, beside the pixels themselves and the same network untrained:\n\n{rows}"
    if verdict:
        shown += f"\n\nOf the training it was said: {verdict['state']}: {verdict['text']}."
    return shown


def _limits(name: str, n_images: int | None, config: dict[str, Any], evaluation: dict[str, Any]) -> str:
    scores = evaluation.get("representations", {})
    where = f"images like those of {name}" if name else "images like those it learned from"
    limits = [f"It is for {where}. Nothing was measured on others: measure before you rely on it."]
    if scores:
        reached = scores.get("trained", {}).get("knn", 0)
        worse = [
            other for other in ("raw pixels", "untrained") if reached <= scores.get(other, {}).get("knn", 1)
        ]
        if worse:
            others = " and ".join(worse)
            limits.append(f"By k-NN it is no better than {others}: there is little to gain from it.")
    if n_images is not None and n_images < _FEW and config.get("init") is None:
        limits.append(f"{n_images:,} images are few to learn from without a start from other weights.")
    limits += [
        "What it finds similar may follow background, light or camera as well as content.",
        "Whether the images may be used, and whom they show, was not examined; nor is a licence given here.",
    ]
    return "\n".join(f"- {limit}" for limit in limits)
