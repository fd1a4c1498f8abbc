"""The online clustering case by case: what one batch, one epoch, a saved state and a mistake do."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from moving_features import stream, unit
from torch.nn.functional import normalize

from coke import distributed
from coke.errors import BoundsError, ConfigError
from coke.method.kmeans import OnlineConstrainedKMeans, argmax_rows


def test_balanced_duals_may_be_negative_and_others_never_are():
    features, labels = unit(8, 4), torch.zeros(8, dtype=torch.int64)
    balanced = OnlineConstrainedKMeans(4, 4, min_size_ratio=1.0, dual_lr=2.0)
    balanced.update(features, labels)
    assert balanced.duals.tolist() == [-1.5, 0.5, 0.5, 0.5]  # 2 (1/4 - 1), 2 (1/4)
    bounded = OnlineConstrainedKMeans(4, 4, min_size_ratio=0.5, dual_lr=2.0)
    bounded.update(features, labels)
    assert bounded.duals.tolist() == [0.0, 0.25, 0.25, 0.25]


def test_first_hit_of_an_epoch_replaces_and_an_unhit_center_keeps_every_bit():
    centers = unit(5, 8) * 1.0000001  # not exactly unit: normalising again would show
    clustering = OnlineConstrainedKMeans(5, 8, centers=centers)
    for _ in range(3):
        features = unit(4, 8, seed=2)
        clustering.update(features, torch.tensor([1, 1, 3, 1]))
        clustering.end_epoch()
        assert torch.equal(clustering.centers[[0, 2, 4]], centers[[0, 2, 4]])
        assert torch.equal(clustering.frozen_centers, clustering.centers)
        assert clustering.counts.tolist() == [0] * 5
        assert torch.allclose(clustering.centers[3], features[2])
        assert torch.allclose(clustering.centers[1], normalize(features[[0, 1, 3]].sum(0), dim=0))


def test_unhit_centers_keep_every_bit_in_the_epochs_of_stage_two_too():
    clustering = OnlineConstrainedKMeans(3, 8, centers=unit(3, 8))
    clustering.begin_averaging()
    before = clustering.centers.clone()
    clustering.update(unit(4, 8, seed=2), torch.tensor([1, 1, 1, 1]))
    assert torch.equal(clustering.centers[[0, 2]], before[[0, 2]])
    assert torch.equal(clustering.frozen_centers, before)
    clustering.end_epoch()
    assert torch.allclose(clustering.frozen_centers[[0, 2]], before[[0, 2]], atol=1e-6)


def test_features_are_used_as_given():
    """A mean of two views is shorter than 1 and weighs less."""
    clustering = OnlineConstrainedKMeans(1, 2, centers=torch.tensor([[1.0, 0.0]]))
    clustering.update(torch.tensor([[0.0, 0.5], [1.0, 0.0]]), torch.tensor([0, 0]))
    assert clustering.centers[0].tolist() == pytest.approx([1 / math.hypot(1, 0.5), 0.5 / math.hypot(1, 0.5)])


def test_an_empty_batch_changes_nothing():
    clustering = OnlineConstrainedKMeans(300, 8)
    clustering.update(unit(5, 8), clustering.assign(unit(5, 8)))
    before = {name: value.clone() for name, value in clustering.state_dict().items()}
    labels = clustering.assign(torch.empty(0, 8))
    assert labels.shape == (0,)
    assert labels.dtype == torch.int64
    clustering.update(torch.empty(0, 8), labels)
    assert all(torch.equal(value, before[name]) for name, value in clustering.state_dict().items())


def test_a_batch_of_one_row_is_a_whole_batch():
    centers = unit(4, 8)
    clustering = OnlineConstrainedKMeans(4, 8, 0.4, dual_lr=1.0, centers=centers)
    feature = unit(1, 8, seed=3)
    label = clustering.assign(feature)
    assert label.tolist() == [int((feature @ centers.t()).argmax())]
    clustering.update(feature, label)
    expected = torch.full((4,), 0.1)
    expected[label] = 0.0
    assert torch.allclose(clustering.duals, expected)
    assert torch.allclose(clustering.centers[label], feature)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_scores_and_centers_are_float32_whatever_the_features(dtype):
    features = unit(64, 16, seed=4).to(dtype)
    one, other = (OnlineConstrainedKMeans(12, 16, centers=unit(12, 16, seed=5)) for _ in range(2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        labels = one.assign(features)
        one.update(features, labels)
        assert one.scores(features).dtype == torch.float32
    assert torch.equal(labels, other.assign(features.float()))
    other.update(features.float(), labels)
    assert one.centers.dtype == torch.float32
    assert torch.equal(one.centers, other.centers)


def test_no_gradient_is_recorded():
    features = unit(8, 4).requires_grad_()
    clustering = OnlineConstrainedKMeans(3, 4, centers=unit(3, 4).requires_grad_())
    clustering.update(features, clustering.assign(features))
    clustering.end_epoch()
    assert not list(clustering.parameters())
    assert not any(buffer.requires_grad for buffer in clustering.buffers())
    assert not clustering.scores(features).requires_grad


def test_centers_given_are_copied():
    centers = unit(3, 4)
    kept = centers.clone()
    clustering = OnlineConstrainedKMeans(3, 4, centers=centers)
    clustering.update(unit(6, 4, seed=1), torch.tensor([0, 1, 2, 0, 1, 2]))
    assert torch.equal(centers, kept)


def run(clustering, epochs):
    for epoch in epochs:
        for batch in stream(60, 12, 1, epoch).split(16):
            clustering.update(batch, clustering.assign(batch))
        clustering.end_epoch()


@pytest.mark.parametrize("averaging", [False, True])
@pytest.mark.parametrize("within_epoch", [False, True])
def test_a_saved_state_continues_exactly(averaging, within_epoch, tmp_path):
    def make(seed):
        return OnlineConstrainedKMeans(6, 12, 0.4, 1.5, unit(6, 12, seed=seed), dual_decay_updates=7.0)

    original, loaded = make(1), make(2)
    run(original, range(2))
    if averaging:
        original.begin_averaging()
        run(original, range(2, 4))
    if within_epoch:
        batch = stream(60, 12, 1, 4)[:20]
        original.update(batch, original.assign(batch))
    torch.save(original.state_dict(), tmp_path / "state.pt")
    loaded.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert loaded.averaging == averaging
    assert loaded.dual_step == original.dual_step < 1.5
    run(original, range(5, 8))
    run(loaded, range(5, 8))
    for name, value in original.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name


def test_state_can_be_set_in_place():
    clustering = OnlineConstrainedKMeans(3, 2, 0.4, dual_lr=1.0)
    clustering.centers.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]))
    features = torch.tensor([[0.8, 0.6], [-0.6, 0.8]])
    assert clustering.assign(features).tolist() == [0, 1]
    clustering.duals.copy_(torch.tensor([0.0, 0.0, 9.0]))
    assert clustering.assign(features).tolist() == [2, 2]
    clustering.counts.fill_(10**6)  # a heavy past hardly moves
    clustering.update(features, torch.tensor([2, 2]))
    assert torch.allclose(clustering.centers[2], torch.tensor([-1.0, 0.0]), atol=1e-5)
    clustering.dual_lr = 0.0
    before = clustering.duals.clone()
    clustering.update(features, torch.tensor([2, 2]))
    assert torch.equal(clustering.duals, before)


def test_assigning_changes_nothing():
    clustering = OnlineConstrainedKMeans(6, 12)
    run(clustering, range(1))
    before = {name: value.clone() for name, value in clustering.state_dict().items()}
    clustering.assign(unit(20, 12))
    assert all(torch.equal(value, before[name]) for name, value in clustering.state_dict().items())


def test_the_step_decays_with_the_square_root_of_the_updates():
    clustering = OnlineConstrainedKMeans(2, 2, dual_lr=3.0, dual_decay_updates=4.0)
    steps = []
    for _ in range(13):
        steps.append(clustering.dual_step)
        clustering.update(torch.eye(2), torch.tensor([0, 1]))
    assert steps[0] == 3.0
    assert steps[12] == pytest.approx(1.5)  # sqrt(1 + 12 / 4) = 2
    assert steps == sorted(steps, reverse=True)


def test_carried_counts_keep_a_center_from_being_replaced():
    kept, wiped = (OnlineConstrainedKMeans(1, 2, centers=torch.eye(2)[:1], count_carry=c) for c in (0.5, 0.0))
    for clustering in (kept, wiped):
        clustering.update(torch.eye(2)[:1].expand(8, 2), torch.zeros(8, dtype=torch.int64))
        clustering.end_epoch()
        clustering.update(torch.eye(2)[1:], torch.zeros(1, dtype=torch.int64))
    assert wiped.centers[0].tolist() == [0.0, 1.0]
    assert kept.centers[0].tolist() == pytest.approx([4 / math.hypot(4, 1), 1 / math.hypot(4, 1)])


def test_halves_from_two_processes_equal_one_batch():
    together, apart = (OnlineConstrainedKMeans(6, 12, 0.4, 1.5, unit(6, 12, seed=1)) for _ in range(2))
    for batch in stream(100, 12, 1, 0).split(25):  # odd: 13 and 12 rows
        together.update(batch, together.assign(batch))
        halves = [batch[distributed.shard(len(batch), index, 2)] for index in range(2)]
        labels = [apart.assign(half) for half in halves]
        apart.update(torch.cat(halves), torch.cat(labels))
    for name, value in together.state_dict().items():
        assert torch.equal(value, apart.state_dict()[name]), name


def test_begin_averaging_twice_is_once():
    clustering = OnlineConstrainedKMeans(3, 4)
    clustering.begin_averaging()
    clustering.end_epoch()
    clustering.begin_averaging()
    assert clustering.averaging_epoch == 2


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"n_clusters": 0}, BoundsError, "at least 1, got 0"),
        ({"min_size_ratio": 1.2}, BoundsError, r"\[0, 1\].*got 1.2"),
        ({"min_size_ratio": math.nan}, BoundsError, "got nan"),
        ({"dim": 0}, ConfigError, "dim must be at least 1"),
        ({"dual_lr": -1.0}, ConfigError, "must not be negative, got -1"),
        ({"dual_lr": math.nan}, ConfigError, "got nan"),
        ({"dual_decay_updates": 0}, ConfigError, "positive or None"),
        ({"count_carry": 1.5}, ConfigError, r"\[0, 1\], got 1.5"),
        ({"centers": torch.zeros(3, 5)}, ConfigError, r"\[3, 4\], got \[3, 5\]"),
    ],
)
def test_bad_settings_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        OnlineConstrainedKMeans(**{"n_clusters": 3, "dim": 4, **arguments})


def test_bad_batches_are_refused_before_anything_changes():
    clustering = OnlineConstrainedKMeans(3, 4)
    before = clustering.centers.clone()
    with pytest.raises(ConfigError, match=r"\[B, 4\], got \[2, 5\]"):
        clustering.assign(torch.zeros(2, 5))
    with pytest.raises(ConfigError, match="2 features came with 3 labels"):
        clustering.update(torch.zeros(2, 4), torch.zeros(3, dtype=torch.int64))
    assert torch.equal(clustering.centers, before)


@settings(max_examples=80)
@given(
    n_rows=st.integers(0, 5),
    n_columns=st.one_of(st.integers(1, 700), st.sampled_from([63, 64, 65, 255, 256, 257, 319, 320, 321])),
    levels=st.integers(1, 4),
    seed=st.integers(0, 1000),
)
def test_argmax_rows_is_the_first_maximum(n_rows, n_columns, levels, seed):
    """Few levels give many ties, in every place: blocks, and the overlap of the last two."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(levels, (n_rows, n_columns), generator=generator).float()
    assert torch.equal(argmax_rows(scores), scores.argmax(dim=1))
    assert argmax_rows(scores).tolist() == [row.index(max(row)) for row in scores.tolist()]
    distinct = torch.randn(n_rows, n_columns, generator=generator)
    assert torch.equal(argmax_rows(distinct), distinct.argmax(dim=1))


@pytest.mark.parametrize("n_columns", [256, 300, 3000])
def test_argmax_rows_finds_every_column(n_columns):
    scores = torch.eye(n_columns)
    assert torch.equal(argmax_rows(scores), torch.arange(n_columns))
    assert torch.equal(argmax_rows(scores.masked_fill(scores == 0, -torch.inf)), torch.arange(n_columns))
