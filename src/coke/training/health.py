"""Is it learning? Figures that need no labels, and a verdict in words with the next action.

Balance alone is not health (a run at chance can be perfectly balanced), nor is agreement alone (a run that
clusters a nuisance agrees with itself ever better). So the verdict looks at the loss beside ln K, at sizes
against the bound, at whether labels survive from one epoch to the next better than chance, and at how many
directions the features use; where there are labels, also at k-NN beside the untrained network.
Shapes: B batch, D dimension, H heads, K clusters of a head.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from coke import distributed
from coke.method.dual_step import min_size

_LEARNED = (
    0.9  # of ln K: a loss above it says little yet; runs here that learned ended below 0.84 (docs/log.md)
)
_NARROWED = 4.0  # by this factor fewer directions than before training are few
_HELPED = 0.02  # k-NN above the untrained network's

OWN_ROWS = ("loss", "agreement", "steps")  # sums over each process's own rows; all others are over all rows


@dataclass(frozen=True)
class Verdict:
    """What the figures say."""

    state: str  # of the table in docs/pretraining.md, "Is it learning?"
    healthy: bool
    text: str
    action: str

    def __str__(self) -> str:
        return f"{self.state}: {self.text}" + (f"; {self.action}" if self.action else "")


class EpochFigures:
    """Sums over an epoch's steps, kept on the device; `summary` turns them into figures.

    Args:
        n_clusters: K of each head.
        dim: D.
    """

    def __init__(self, n_clusters: tuple[int, ...], dim: int, device: torch.device) -> None:
        self.n_clusters = n_clusters
        heads = len(n_clusters)
        names = (*OWN_ROWS, "images", "known")
        self.sums = {name: torch.zeros((), dtype=torch.float64, device=device) for name in names}
        self.sums["kept"] = torch.zeros(heads, dtype=torch.float64, device=device)
        self.sums["covariance"] = torch.zeros(dim, dim, device=device)
        self.sums["sizes"] = torch.zeros(heads, max(n_clusters), device=device)
        self.sums["previous"] = torch.zeros(heads, max(n_clusters), device=device)

    def add_loss(self, loss: Tensor, agreement: Tensor, share: float = 1.0) -> None:
        """Loss and agreement of prediction and label of one step, or of a share of its rows."""
        self.sums["loss"] += share * loss.detach()
        self.sums["agreement"] += share * agreement
        self.sums["steps"] += share

    def add_labels(self, features: Tensor, old: Tensor, new: Tensor) -> None:
        """One step's features [B, D], and its labels [B, H] of last epoch (-1: none) and of this one."""
        known = old[:, 0] >= 0
        self.sums["images"] += len(new)
        self.sums["known"] += known.sum()
        self.sums["kept"] += ((old == new) & known[:, None]).sum(dim=0)
        ones = torch.ones_like(new, dtype=torch.float32).t()
        self.sums["sizes"].scatter_add_(1, new.t(), ones)
        self.sums["previous"].scatter_add_(1, old.clamp(min=0).t(), ones * known)
        centred = features - features.mean(dim=0)  # of the step: drift between steps is no spread
        self.sums["covariance"].addmm_(centred.t(), centred)

    def summary(self, min_size_ratio: float) -> dict[str, Any]:
        """Figures of the epoch, plain numbers: see the fields of an epoch record in `coke.run`."""
        sums = {name: value.cpu() for name, value in self.sums.items()}
        images, known, steps = float(sums["images"]), float(sums["known"]), float(sums["steps"])
        kept = sums["kept"] / known if known else torch.full_like(sums["kept"], math.nan)
        by_chance = (sums["sizes"] / max(images, 1) * sums["previous"] / max(known, 1)).sum(dim=1)
        chance_corrected = ((kept - by_chance) / (1 - by_chance).clamp(min=1e-9)).mean()
        covariance = sums["covariance"].double() / max(images, 1)
        return {
            "loss": float(sums["loss"]) / steps if steps else None,
            "ln_clusters": sum(map(math.log, self.n_clusters)) / len(self.n_clusters),
            "heads": [
                _head_figures(sums["sizes"][head, :k], images, min_size_ratio)
                for head, k in enumerate(self.n_clusters)
            ],
            "churn": float(1 - kept.mean()) if known else None,
            "label_agreement": float(chance_corrected) if known else None,
            "chance_agreement": float(by_chance.mean()),
            "images": int(images),
            "prediction_agreement": float(sums["agreement"]) / steps if steps else None,
            "feature_spread": float(covariance.diagonal().sum().clamp(min=0).sqrt()),
            "effective_rank": effective_rank(covariance),
        }

    def state_dict(self) -> dict[str, Tensor]:
        """For a checkpoint within an epoch: every process asks for it, and each one's own sums [P] are in it."""
        own = torch.stack([self.sums[name] for name in OWN_ROWS])[None]
        gathered = distributed.gather_uneven((own,))[0]
        return self.sums | dict(zip(OWN_ROWS, gathered.unbind(1), strict=True))

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take the sums back; of another number of processes each takes their mean."""
        rank, n_processes = distributed.rank(), distributed.world_size()
        if state.keys() != self.sums.keys() or any(state[name].dim() > 1 for name in OWN_ROWS):
            raise ValueError(f"figures {', '.join(self.sums)} are expected")
        for name, value in state.items():
            if name in OWN_ROWS:
                each = value.reshape(-1)
                value = each[rank] if len(each) == n_processes else each.mean()
            self.sums[name].copy_(value)


def _head_figures(sizes: Tensor, n_images: float, min_size_ratio: float) -> dict[str, Any]:
    quantiles = torch.quantile(sizes, torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95]))
    return {
        "n_clusters": len(sizes),
        "used": int((sizes > 0).sum()),
        "smallest": int(sizes.min()),
        "largest": int(sizes.max()),
        "largest_share": float(sizes.max()) / max(n_images, 1),
        "bound": min_size(int(n_images), len(sizes), min_size_ratio),
        "size_quantiles": [float(value) for value in quantiles],
    }


def effective_rank(covariance: Tensor) -> float:
    """exp of the entropy of the covariance's spectrum (Roy and Vetterli 2007): directions that features use.

    >>> round(effective_rank(torch.eye(4)), 3), effective_rank(torch.zeros(4, 4))
    (4.0, 0.0)
    """
    if not bool(torch.isfinite(covariance).all()):
        return 0.0
    spectrum = torch.linalg.eigvalsh(covariance.double()).clamp(min=0)
    total = float(spectrum.sum())
    if total <= 1e-12:
        return 0.0
    shares = spectrum / total
    return float(torch.exp(-(shares * shares.clamp(min=1e-30).log()).sum()))


def judge(
    epochs: list[dict[str, Any]],
    knn: list[dict[str, Any]],
    warmup_over: bool,
    temperature: float = 0.1,
) -> Verdict:
    """The verdict on a run from its epoch records so far and its k-NN records (the first is untrained)."""
    last = epochs[-1]
    loss, ln_clusters = last["loss"], last["ln_clusters"]
    for failure in (_diverging(epochs, temperature), _trivial(last), _dominated(last), _constant(last)):
        if failure:
            return failure
    if loss is None:
        head = last["heads"][0]
        text = f"first pass over the images, {head['used']} of {head['n_clusters']} clusters in use"
        return Verdict("clustering", True, text, "")
    n_trained = sum(record["loss"] is not None for record in epochs)
    settled = warmup_over and n_trained >= 3
    unsettling = (_noise(epochs), _guessing(epochs)) if settled else ()
    for failure in (
        *unsettling,
        _nuisance(knn),
        _unbalanced(last),
        _narrow(epochs, knn) if settled else None,
    ):
        if failure:
            return failure
    if loss >= _LEARNED * ln_clusters:
        how = "not yet below" if loss >= ln_clusters else "hardly below"
        text = f"loss {loss:.2f} is {how} ln K {ln_clusters:.2f}: too little training to say or to trust"
        return Verdict("starting", True, text, "" if not settled else "train for more epochs")
    kept = last["label_agreement"]
    facts = [
        f"loss {loss:.2f} beside ln K {ln_clusters:.2f}",
        f"{100 * kept:.0f} % of labels kept beyond chance" if kept is not None else "",
        f"effective rank {last['effective_rank']:.0f}",
    ]
    if len(knn) > 1:
        facts.append(f"k-NN {100 * knn[-1]['accuracy']:.1f} % (untrained {100 * knn[0]['accuracy']:.1f} %)")
    return Verdict("learning", True, ", ".join(filter(None, facts)), "")


def _diverging(epochs: list[dict[str, Any]], temperature: float) -> Verdict | None:
    """Far above a guess: sharper logits (a lower temperature) make wrong guesses dearer."""
    losses = [record["loss"] for record in epochs if record["loss"] is not None]
    if not losses:
        return None
    loss, ln_clusters = losses[-1], epochs[-1]["ln_clusters"]
    if (
        math.isfinite(loss)
        and loss <= ln_clusters + 0.25 / temperature
        and loss <= 1.5 * min(losses) + ln_clusters
    ):
        return None
    return Verdict(
        "diverging",
        False,
        f"the loss is {loss:.3g}, ln K is {ln_clusters:.2f}",
        "lower learning_rate or lengthen warmup_epochs; set clip_norm=5 if it happens early",
    )


def not_finite(n_steps: int, epoch: int, step: int, learning_rate: float | None) -> Verdict:
    """The verdict on so many steps in a row that were not finite; no learning rate in the clustering epochs."""
    text = f"numbers were not finite in {n_steps} steps in a row, at last in epoch {epoch}, step {step}"
    action = "check the images, the weights to start from, and precision"
    if learning_rate is not None:
        action = f"go on with --resume and learning_rate={learning_rate / 10:g}, or clip_norm=5"
    return Verdict("diverging", False, text, action)


def _trivial(last: dict[str, Any]) -> Verdict | None:
    """One cluster in every head: predicting it takes no network."""
    if last["ln_clusters"] > 0 or last["loss"] is None:
        return None
    text = "there is one cluster alone, so every image has the same label and nothing is learned"
    return Verdict("trivial", False, text, "raise n_clusters")


def _narrow(epochs: list[dict[str, Any]], knn: list[dict[str, Any]]) -> Verdict | None:
    """Features that fell into few of the directions they had before training, unless labels say that it helped."""
    before, now = epochs[0]["effective_rank"], epochs[-1]["effective_rank"]
    helped = len(knn) > 1 and knn[-1]["accuracy"] >= knn[0]["accuracy"] + _HELPED
    if helped or now >= before / _NARROWED:
        return None
    return Verdict(
        "narrow",
        False,
        f"features fell into few directions: effective rank {now:.0f}, {before:.0f} before training",
        "raise objective.decorrelation (0.01 or 0.1), or give more images",
    )


def _constant(last: dict[str, Any]) -> Verdict | None:
    rank, kept = last["effective_rank"], last["label_agreement"]
    few_directions = rank < 1.5 or (
        rank < 2 and (kept is None or kept < 0.1)
    )  # one line can hold two clusters
    few_directions &= last["images"] > 3  # which cannot differ in more than two
    if last["feature_spread"] >= 0.1 and not few_directions:
        return None
    return Verdict(
        "constant",
        False,
        f"features hardly differ between images: spread {last['feature_spread']:.3f} of 1, "
        f"effective rank {last['effective_rank']:.1f}",
        "check that the images differ and are normalised; lower learning_rate or weight_decay",
    )


def _dominated(last: dict[str, Any]) -> Verdict | None:
    """One cluster far above its share: at small K the share itself is large, hence the square root."""
    for head in last["heads"]:
        n_clusters = head["n_clusters"]
        if n_clusters > 1 and head["largest_share"] > min(0.9, max(0.25, 2.5 / math.sqrt(n_clusters))):
            return Verdict(
                "collapsing",
                False,
                f"one cluster of {n_clusters} holds {100 * head['largest_share']:.0f} % of images",
                "raise dual_lr or min_size_ratio, or lower n_clusters",
            )
    return None


def _noise(epochs: list[dict[str, Any]]) -> Verdict | None:
    """Labels that survive an epoch no better than by chance, three epochs in a row."""
    last = epochs[-1]
    agreements = [
        record["label_agreement"] for record in epochs[-3:] if record["label_agreement"] is not None
    ]
    if len(agreements) < 3 or last["ln_clusters"] == 0:
        return None
    chance, n_labels = last["chance_agreement"], last["images"] * len(last["heads"])
    luck = max(0.012, 3 * math.sqrt(chance / max(1 - chance, 1e-9) / max(n_labels, 1)))
    if max(agreements) > luck:
        return None
    return Verdict(
        "noise",
        False,
        f"labels are noise: {100 * last['label_agreement']:.1f} % kept from the last epoch beyond chance, where luck "
        f"explains {100 * luck:.1f} %; loss {last['loss']:.2f} beside ln K {last['ln_clusters']:.2f}",
        "lower dual_lr first, then weaken the augmentation (views.crop, views.jitter) or lower n_clusters",
    )


def _guessing(epochs: list[dict[str, Any]]) -> Verdict | None:
    """No progress over three epochs, and none that was made before: a uniform guess has a loss of ln K."""
    losses = [record["loss"] for record in epochs if record["loss"] is not None][-4:]
    ln_clusters = epochs[-1]["ln_clusters"]
    if len(losses) < 4 or not 0 < ln_clusters <= min(losses) or losses[-1] < 0.99 * losses[0]:
        return None
    return Verdict(
        "guessing",
        False,
        f"the loss {losses[-1]:.2f} is no better than a guess (ln K {ln_clusters:.2f}) and has not fallen for three "
        "epochs",
        "raise learning_rate, or lower weight_decay if it is above 0.001; then weaken the augmentation",
    )


def _nuisance(knn: list[dict[str, Any]]) -> Verdict | None:
    if len(knn) < 3 or knn[-1]["accuracy"] >= knn[0]["accuracy"] - 0.02:
        return None
    return Verdict(
        "nuisance",
        False,
        f"k-NN {100 * knn[-1]['accuracy']:.1f} % is below the untrained network's {100 * knn[0]['accuracy']:.1f} %: "
        "the clusters follow something other than the labels",
        "let the augmentation vary what should not matter; lower learning_rate",
    )


def _unbalanced(last: dict[str, Any]) -> Verdict | None:
    for head in last["heads"]:
        if (
            head["bound"] >= 1
            and head["smallest"] < 0.1 * head["bound"]
            and head["used"] < 0.9 * head["n_clusters"]
        ):
            return Verdict(
                "unbalanced",
                False,
                f"{head['n_clusters'] - head['used']} of {head['n_clusters']} clusters are empty (each should hold "
                f"{head['bound']:.0f} images)",
                "raise dual_lr or dual_climb",
            )
    return None
