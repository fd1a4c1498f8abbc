"""One step of each optimizer by hand; the schedule by its formula, whole and cut."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from coke.errors import ConfigError
from coke.images.views import View
from coke.training.config import Config
from coke.training.schedule import Schedule, make_optimizer, set_learning_rate


def rates(schedule, n_steps):
    """The learning rates of the next steps."""
    for _ in range(n_steps):
        yield schedule.learning_rate
        schedule.advance()


def config(**changes):
    values = {
        "recipe": "auto",
        "data": "textures",
        "mean": (0.5, 0.5, 0.5),
        "std": (0.2, 0.2, 0.2),
        "views": (View(),),
        "backbone": "coke_conv5_w16",
        "n_clusters": (4,),
        "dual_lr": (1.0,),
        "epochs": 3,
        "batch_size": 8,
        "learning_rate": 0.5,
        "weight_decay": 0.01,
        "nesterov": False,
    }
    return Config(**{**values, **changes})


def steps_of(chosen, n_steps=3):
    """Parameters after each step with the same gradient: of a layer, and what it started from."""
    network = nn.Linear(3, 2)
    start = {name: value.detach().double().clone() for name, value in network.named_parameters()}
    gradient = {name: torch.randn_like(value).double() for name, value in start.items()}
    optimizer = make_optimizer(network, chosen)
    history = []
    for _ in range(n_steps):
        for name, parameter in network.named_parameters():
            parameter.grad = gradient[name].float()
        optimizer.step()
        history.append({name: value.detach().double().clone() for name, value in network.named_parameters()})
    return start, gradient, history


@pytest.mark.parametrize("weight_decay", [0.01, 0.0])
def test_lars_adapts_and_decays_matrices_only(weight_decay):
    chosen = config(optimizer="lars", weight_decay=weight_decay)
    weights, gradients, history = steps_of(chosen)
    momentum = dict.fromkeys(weights, 0.0)
    for found in history:
        for name, w in weights.items():
            g = gradients[name]
            if name == "weight":
                trust = 0.001 * w.norm() / (g.norm() + weight_decay * w.norm())
                g = trust * (g + weight_decay * w)
            momentum[name] = 0.9 * momentum[name] + g
            weights[name] = w - 0.5 * momentum[name]
            assert torch.allclose(found[name], weights[name], atol=1e-5), name


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_decays_matrices_only(nesterov):
    weights, gradients, history = steps_of(config(nesterov=nesterov))
    momentum = dict.fromkeys(weights, 0.0)
    for found in history:
        for name, w in weights.items():
            g = gradients[name] + (0.01 * w if name == "weight" else 0)
            momentum[name] = 0.9 * momentum[name] + g
            weights[name] = w - 0.5 * (g + 0.9 * momentum[name] if nesterov else momentum[name])
            assert torch.allclose(found[name], weights[name], atol=1e-5), name


def test_adamw_decays_matrices_only():
    weights, gradients, history = steps_of(config(optimizer="adamw"), n_steps=1)
    for name, w in weights.items():
        decayed = w * (1 - 0.5 * 0.01) if name == "weight" else w
        expected = decayed - 0.5 * gradients[name].sign()  # the first step of Adam
        assert torch.allclose(history[0][name], expected, atol=1e-4), name


def test_frozen_parameters_stay_out():
    network = nn.Linear(3, 2)
    network.bias.requires_grad_(False)
    optimizer = make_optimizer(network, config())
    assert [len(group["params"]) for group in optimizer.param_groups] == [1, 0]


def test_nesterov_without_momentum_is_refused_in_words():
    with pytest.raises(ConfigError, match="nesterov"):
        config(nesterov=True, momentum=0.0)
    assert config(nesterov=False, momentum=0.0).momentum == 0


def test_the_learning_rate_is_that_of_all_groups():
    optimizer = make_optimizer(nn.Linear(3, 2), config())
    set_learning_rate(optimizer, 0.125)
    assert [group["lr"] for group in optimizer.param_groups] == [0.125, 0.125]


# ---------------------------------------------------------------------------------------------- schedule


def test_a_ramp_then_a_cosine():
    schedule = Schedule(2.0, n_epochs=12, clustering_epochs=1, warmup_epochs=2, steps_per_epoch=5)
    ramp = [2.0 * (step + 1) / 11 for step in range(10)]
    cosine = [1 + math.cos(math.pi * step / 45) for step in range(45)]
    assert list(rates(schedule, 55)) == pytest.approx(ramp + cosine)
    assert schedule.progress == pytest.approx(1.0)
    assert schedule.learning_rate == pytest.approx(0.0, abs=1e-9)


def test_the_ramp_is_at_most_a_quarter_of_the_training():
    schedule = Schedule(1.0, n_epochs=9, clustering_epochs=1, warmup_epochs=10, steps_per_epoch=6)
    assert schedule.warmup_steps == 12
    assert Schedule(1.0, 1000, 1, 10, 6).warmup_steps == 60
    assert Schedule(1.0, 9, 1, 0, 6).learning_rate == 1.0


shapes = st.tuples(st.integers(2, 12), st.integers(1, 7), st.floats(0, 12))


@settings(max_examples=80)
@given(shapes, st.data())
def test_a_schedule_that_is_cut_still_completes(shape, data):
    n_epochs, steps_per_epoch, warmup = shape
    schedule = Schedule(1.0, n_epochs, 1, warmup, steps_per_epoch)
    done = data.draw(st.integers(0, n_epochs - 2))
    list(rates(schedule, done * steps_per_epoch))
    schedule.n_epochs = data.draw(st.integers(done + 2, n_epochs))
    left = (schedule.n_epochs - 1 - done) * steps_per_epoch
    trained = schedule.trained_steps
    found = list(rates(schedule, left))
    assert schedule.progress == pytest.approx(1.0)
    assert all(0 < rate <= 1 for rate in found)
    falling = found[max(0, schedule.warmup_steps - trained) :]
    assert all(later <= earlier + 1e-12 for earlier, later in itertools.pairwise(falling))


@settings(max_examples=60)
@given(shapes, st.integers(2, 20), st.data())
def test_starting_over_is_as_if_it_had_been_so(shape, n_epochs, data):
    before, steps_per_epoch, warmup = shape
    done = data.draw(st.integers(0, (min(before, n_epochs) - 1) * steps_per_epoch))
    changed = Schedule(1.0, before, 1, warmup, steps_per_epoch)
    list(rates(changed, done))
    changed.start_over(n_epochs)
    fresh = Schedule(1.0, n_epochs, 1, warmup, steps_per_epoch)
    list(rates(fresh, done))
    left = (n_epochs - 1) * steps_per_epoch - done
    assert list(rates(changed, left)) == pytest.approx(list(rates(fresh, left)), abs=1e-9)


def test_a_saved_schedule_goes_on():
    one, other = (Schedule(1.0, 9, 1, 2, 6) for _ in range(2))
    list(rates(one, 17))
    other.load_state_dict(one.state_dict())
    assert list(rates(one, 31)) == list(rates(other, 31))


@pytest.mark.parametrize(
    ("n_epochs", "share", "first"),
    [(1000, 0.2, 800), (200, 0.2, 160), (10, 0.0, None), (3, 1.0, 2), (4, 0.9, 2), (60, 0.2, 48)],
)
def test_the_last_share_of_the_epochs_averages(n_epochs, share, first):
    """Never the clustering epoch, nor the first that trains."""
    schedule = Schedule(1.0, n_epochs, 1, 10, 5)
    averaging = [epoch for epoch in range(n_epochs) if schedule.averages(epoch, share)]
    assert averaging == ([] if first is None else list(range(first, n_epochs)))
