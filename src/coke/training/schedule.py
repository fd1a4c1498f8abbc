"""The optimizer, its learning rate over the run, and how many epochs a run has time for.

The learning rate is a ramp after the clustering pass, then a cosine to 0.
"""

from __future__ import annotations

import math
import statistics

import torch
from torch import nn

from coke.training.config import Config

TRUST_COEFFICIENT = 0.001  # of LARS: a matrix's step, over its norm, before the learning rate
FEW_EPOCHS = 20  # fewer hardly learn
_NEAR_END = 2  # epochs left from which on a slow first epoch is taken at its word


def make_optimizer(network: nn.Module, config: Config) -> torch.optim.Optimizer:
    """SGD, LARS or AdamW. Biases and batch-norm weights (one dimension) get no decay and no LARS adaptation."""
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in parameters if parameter.dim() > 1]
    vectors = [parameter for parameter in parameters if parameter.dim() <= 1]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    rate = config.learning_rate
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=rate)
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=rate, momentum=config.momentum, nesterov=config.nesterov)
    from timm.optim import Lars

    for group, adapts in zip(groups, (True, False), strict=True):
        group["always_adapt"] = adapts  # timm adapts only where there is weight decay unless told so
    return Lars(
        groups,
        lr=rate,
        momentum=config.momentum,
        trust_coeff=TRUST_COEFFICIENT,
        nesterov=config.nesterov,
    )


class Schedule:
    """Where a run stands between its first and its last training step, and the learning rate there.

    The number of epochs may be cut under way (``max_minutes``): what is left of the cosine is then spread over
    the steps that are left, so a schedule always completes.

    Args:
        peak: learning rate after the ramp.
        n_epochs: including the clustering epochs.
        clustering_epochs: which come first, without training.
        warmup_epochs: the ramp, at most a quarter of the training epochs.
        steps_per_epoch: steps in an epoch.

    Examples:
        >>> schedule = Schedule(1.0, n_epochs=3, clustering_epochs=1, warmup_epochs=0.5, steps_per_epoch=2)
        >>> for step in range(4):
        ...     print(round(schedule.learning_rate, 2))
        ...     schedule.advance()
        0.5
        1.0
        0.75
        0.25
    """

    def __init__(
        self, peak: float, n_epochs: int, clustering_epochs: int, warmup_epochs: float, steps_per_epoch: int
    ) -> None:
        self.peak, self.n_epochs, self.clustering_epochs = peak, n_epochs, clustering_epochs
        self.warmup_epochs, self.steps_per_epoch = warmup_epochs, steps_per_epoch
        self.trained_steps = 0
        self.progress = 0.0  # 0 at the end of the ramp, 1 at the end of the run

    @property
    def warmup_steps(self) -> int:
        """Steps of the ramp."""
        epochs = min(self.warmup_epochs, (self.n_epochs - self.clustering_epochs) / 4)
        return round(epochs * self.steps_per_epoch)

    @property
    def learning_rate(self) -> float:
        """Of the step to come."""
        if self.trained_steps < self.warmup_steps:
            return self.peak * (self.trained_steps + 1) / (self.warmup_steps + 1)
        return self.peak * (1 + math.cos(math.pi * self.progress)) / 2

    def advance(self) -> None:
        """One training step was done."""
        steps_left = (self.n_epochs - self.clustering_epochs) * self.steps_per_epoch - self.trained_steps
        self.trained_steps += 1
        if self.trained_steps > self.warmup_steps and steps_left > 0:
            self.progress += (1 - self.progress) / steps_left

    def start_over(self, n_epochs: int) -> None:
        """Another number of epochs, as if it had been so from the start: a cosine that has ended rises again."""
        self.n_epochs = n_epochs
        steps = (n_epochs - self.clustering_epochs) * self.steps_per_epoch - self.warmup_steps
        self.progress = min(1.0, max(0, self.trained_steps - self.warmup_steps) / max(1, steps))

    def averages(self, epoch: int, averaging_share: float) -> bool:
        """Whether an epoch belongs to the last share of the run that averages (stage 2)."""
        return averaging_share > 0 and epoch >= max(
            self.clustering_epochs + 1, round(self.n_epochs * (1 - averaging_share))
        )

    def state_dict(self) -> dict[str, float]:
        """For the checkpoint."""
        return {"n_epochs": self.n_epochs, "trained_steps": self.trained_steps, "progress": self.progress}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Take a checkpoint's state; the number of epochs is the caller's to set."""
        self.trained_steps, self.progress = int(state["trained_steps"]), float(state["progress"])


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group the learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate


class TimeLimit:
    """How many epochs `max_minutes` leaves time for, by what epochs of this process have taken.

    Args:
        minutes: of training, over all resumptions.

    Example:
        >>> limit = TimeLimit(minutes=1)
        >>> limit.add(2.0, 2.0)  # a trial
        >>> limit.epochs_left(elapsed=0, clustering_epochs=1)
        29
        >>> limit.add(8.0, 9.0), limit.worth_a_change(n_epochs=30, planned=7, epoch=2)  # warming up
        (None, False)
        >>> limit.add(2.0, 3.0)
        >>> limit.epochs_left(elapsed=15, clustering_epochs=0)
        15
    """

    def __init__(self, minutes: float) -> None:
        self.minutes = minutes
        self._epochs: list[tuple[float, float]] = []

    def add(self, steps: float, whole: float) -> None:
        """Seconds of an epoch of training: of its steps, and with probes and records. The first one is a trial."""
        self._epochs.append((steps, whole))

    def epochs_left(self, elapsed: float, clustering_epochs: int) -> int:
        """Epochs of training after ``elapsed`` seconds and clustering epochs, which take a third of the time each.

        Those behind count with their mean, without the first, which compiles and warms up, where there are others.
        Steps half as slow again as the fastest epoch's say that the machine has become slower.
        """
        measured = self._epochs[2:] or self._epochs[-1:]
        steps = [seconds for seconds, _ in measured]
        beside = statistics.fmean(whole - seconds for seconds, whole in measured)
        slower = steps[-1] > 1.5 * min(steps)
        per_epoch = beside + (steps[-1] if slower else statistics.fmean(steps))
        return max(0, int((60 * self.minutes - elapsed) / per_epoch - clustering_epochs / 3))

    def worth_a_change(self, n_epochs: int, planned: int, epoch: int) -> bool:
        """Whether to plan so many epochs instead of ``n_epochs``: fewer always, more where it is a tenth.

        By the first epoch alone only where it says that the end is near.
        """
        if len(self._epochs) == 2 and planned > epoch + _NEAR_END:
            return False
        return planned < n_epochs or planned > 1.1 * n_epochs


def too_short(config: Config, seconds: float) -> str:
    """Why `max_minutes` does not do where an epoch takes so many seconds, and what would.

    >>> config = Config(recipe="auto", data="photos", mean=[0.5] * 3, std=[0.2] * 3, views=[{"size": 128}],
    ...     backbone="resnet18", n_clusters=8, dual_lr=1, epochs=200, batch_size=16, learning_rate=0.1, max_minutes=3)
    >>> print(too_short(config, seconds=240).replace("; ", ";\\n"))
    max_minutes=3 is too short: one epoch takes 4.00 minutes;
    max_minutes=6.4 is enough for one, 98 for 20, which is the least that learns;
    less time is taken with views.size=64, backbone=coke_conv5_w24 beside it or fewer images
    """

    def minutes(
        epochs: float,
    ) -> str:  # two digits, rounded up, with a fifth for a machine that is slower later
        value = 1.2 * seconds * (epochs + config.clustering_epochs / 3) / 60
        unit = 10.0 ** (math.floor(math.log10(value)) - 1)
        return f"{math.ceil(value / unit) * unit:.4g}"

    return (
        f"max_minutes={config.max_minutes:g} is too short: one epoch takes {seconds / 60:.2f} minutes; "
        f"max_minutes={minutes(1)} is enough for one, {minutes(FEW_EPOCHS)} for {FEW_EPOCHS}, which is the least that "
        f"learns; less time is taken with {faster(config)}"
    )


def faster(config: Config) -> str:
    """What makes an epoch shorter, as keys to type.

    Half the side is a quarter of the arithmetic; ``coke_conv5_*`` are for small views.
    """
    size, backbone, ways = config.image_size, config.backbone, []
    if size > 32:
        ways.append(f"views.size={max(32, size // 2)}")
    if backbone.startswith("custom:"):
        ways.append("a smaller backbone")
    elif backbone not in ("resnet18", "coke_conv5_w16") and size > 64:
        ways.append("backbone=resnet18")
    elif backbone != "coke_conv5_w16":
        smaller = "coke_conv5_w16" if backbone.startswith("coke_conv5") else "coke_conv5_w24"
        ways.append(f"backbone={smaller}" + (" beside it" if size > 64 else ""))
    return " or ".join(([", ".join(ways)] if ways else []) + ["fewer images"])
