"""The online clustering against a slow restatement of the method in NumPy, and against what is proved of it."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from moving_features import stream, unit

from coke.method.kmeans import OnlineConstrainedKMeans


class Reference:
    """Method sections 2 and 4, one image and one cluster at a time, in float64."""

    def __init__(self, centers, ratio, eta, decay_updates=None, carry=0.0):
        self.centers = centers.double().numpy().copy()
        self.frozen = self.centers.copy()
        self.n_clusters = len(self.centers)
        self.duals = np.zeros(self.n_clusters)
        self.counts = np.zeros(self.n_clusters)
        self.ratio, self.eta, self.decay_updates, self.carry = ratio, eta, decay_updates, carry
        self.updates, self.stage_two_epoch = 0, None

    def step(self, features):
        labels = [self.nearest(x) for x in features]
        batch_counts = [labels.count(k) for k in range(self.n_clusters)]
        eta = self.eta
        if self.decay_updates is not None:
            eta /= math.sqrt(1 + self.updates / self.decay_updates)
        for k in range(self.n_clusters):
            self.duals[k] += eta * (self.ratio / self.n_clusters - batch_counts[k] / len(labels))
            if self.ratio < 1:
                self.duals[k] = max(0.0, self.duals[k])
        for k in range(self.n_clusters):
            if batch_counts[k] == 0:
                continue
            total = self.counts[k] * self.centers[k]
            for x, label in zip(features, labels, strict=True):
                if label == k:
                    total = total + x
            self.counts[k] += batch_counts[k]
            if self.stage_two_epoch is None:
                self.centers[k] = total / np.linalg.norm(total)
            else:
                self.centers[k] = total / self.counts[k]
        self.updates += 1
        return labels

    def nearest(self, x):
        centers = self.centers if self.stage_two_epoch is None else self.frozen
        scores = [float(x @ centers[k]) + self.duals[k] for k in range(self.n_clusters)]
        return scores.index(max(scores))

    def end_epoch(self):
        if self.stage_two_epoch is None:
            self.frozen = self.centers.copy()
        else:
            share = 1 / self.stage_two_epoch  # f = 1 / (e - e0 + 1)
            for k in range(self.n_clusters):
                mean = self.centers[k] / np.linalg.norm(self.centers[k])
                moved = (1 - share) * self.frozen[k] + share * mean
                self.frozen[k] = moved / np.linalg.norm(moved)
            self.centers = self.frozen.copy()
            self.stage_two_epoch += 1
        self.counts *= self.carry


def assert_equal_states(clustering, reference):
    np.testing.assert_allclose(clustering.centers.numpy(), reference.centers, atol=1e-6)
    np.testing.assert_allclose(clustering.frozen_centers.numpy(), reference.frozen, atol=1e-6)
    np.testing.assert_allclose(clustering.duals.numpy(), reference.duals, atol=5e-6)
    np.testing.assert_array_equal(clustering.counts.numpy(), reference.counts)


def check_replay(clustering, reference, epochs, n_views=1, n_images=106, batch_size=24, dim=12):
    """Both see the same stream, the last batch of an epoch short (10 of 24); they agree after every step."""
    for epoch in epochs:
        for batch in stream(n_images, dim, n_views, epoch).split(batch_size):
            labels = clustering.assign(batch)
            clustering.update(batch, labels)
            assert labels.tolist() == reference.step(batch.double().numpy())
            assert_equal_states(clustering, reference)
        clustering.end_epoch()
        reference.end_epoch()
        assert_equal_states(clustering, reference)


@pytest.mark.parametrize("n_views", [1, 2])
@pytest.mark.parametrize("ratio", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("n_clusters", [6, 260])  # 260: the search for the maximum goes by blocks
def test_replay_of_both_stages(n_clusters, ratio, n_views):
    centers = unit(n_clusters, 12, seed=9)
    clustering = OnlineConstrainedKMeans(n_clusters, 12, ratio, dual_lr=1.5, centers=centers)
    reference = Reference(centers, ratio, 1.5)
    small = {} if n_clusters < 100 else {"n_images": 40, "batch_size": 24}
    check_replay(clustering, reference, range(3), n_views, **small)
    clustering.begin_averaging()
    reference.stage_two_epoch = 1
    check_replay(clustering, reference, range(3, 6), n_views, **small)


@pytest.mark.parametrize(("decay", "carry"), [(3.0, 0.0), (None, 0.5), (10.0, 1.0)])
def test_replay_with_decaying_step_and_carried_counts(decay, carry):
    centers = unit(6, 12, seed=9)
    clustering = OnlineConstrainedKMeans(
        6, 12, 0.4, 1.5, centers, dual_decay_updates=decay, count_carry=carry
    )
    check_replay(clustering, Reference(centers, 0.4, 1.5, decay, carry), range(4))


def test_clusters_are_filled_where_plain_k_means_leaves_them_empty():
    sizes = {}
    for ratio in (0.0, 0.9):
        clustering = OnlineConstrainedKMeans(10, 12, ratio, dual_lr=2.0, centers=unit(10, 12, seed=3))
        for epoch in range(6):
            for batch in stream(400, 12, 1, epoch).split(40):
                clustering.update(batch, clustering.assign(batch))
            sizes[ratio] = clustering.counts.clone()
            clustering.end_epoch()
    assert sizes[0.9].min() >= 0.6 * 0.9 * 400 / 10 > sizes[0.0].min()


@settings(max_examples=60)
@given(data=st.data())
def test_a_deficit_is_paid_for_by_the_dual(data):
    """r N / K - n_k <= (B / eta) (rho_end - rho_start) for any stream of full batches whatever; = for r = 1."""
    n_clusters = data.draw(st.integers(1, 7))
    batch_size = data.draw(st.integers(1, 16))
    n_steps = data.draw(st.integers(1, 12))
    ratio = data.draw(st.sampled_from([0.0, 0.1, 0.4, 0.75, 1.0]))
    eta = data.draw(st.sampled_from([0.01, 1.0, 20.0]))
    seed = data.draw(st.integers(0, 1000))
    adversarial = data.draw(st.booleans())
    generator = torch.Generator().manual_seed(seed)
    clustering = OnlineConstrainedKMeans(n_clusters, 4, ratio, eta, unit(n_clusters, 4, seed=seed))
    clustering.duals.copy_(torch.rand(n_clusters, generator=generator))
    start, total = clustering.duals.double(), torch.zeros(n_clusters)
    for step in range(n_steps):
        features = unit(batch_size, 4, seed=seed + step)
        if adversarial:  # labels that no rule chose
            labels = torch.randint(n_clusters, (batch_size,), generator=generator)
        else:
            labels = clustering.assign(features)
        clustering.update(features, labels)
        total += torch.bincount(labels, minlength=n_clusters)
        if data.draw(st.booleans()):
            clustering.end_epoch()  # duals go on
    deficit = ratio * n_steps * batch_size / n_clusters - total.double()
    paid = (clustering.duals.double() - start) * batch_size / eta
    rounding = 2e-6 * n_steps * batch_size * (1 + float(clustering.duals.abs().max()) / eta)
    assert (deficit <= paid + rounding).all()
    if ratio == 1:
        assert torch.allclose(deficit, paid, atol=rounding)
