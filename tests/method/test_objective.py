"""The loss against the formulas of the method, written out one image and one head at a time."""

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from coke.errors import ConfigError
from coke.method import LabelMemory
from coke.method.network import Output
from coke.method.objective import Objective, Target, redundancy

B, D, HEADS = 5, 6, (4, 7)
SINGLE = Objective(temperature=0.1)
TWO = Objective(temperature=0.05, label_weight=0.2, prediction_share=0.5)


def unit(*shape, seed=0):
    return normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def output(seed):
    return Output(unit(B, D, seed=seed).requires_grad_(), unit(B, D, seed=seed + 50).requires_grad_())


@pytest.fixture
def centers():
    return [unit(k, D, seed=90 + k) for k in HEADS]


@pytest.fixture
def labels():
    generator = torch.Generator().manual_seed(7)
    return torch.stack([torch.randint(k, (B,), generator=generator) for k in HEADS], dim=1)


def hard(labels):
    return Target(labels[..., None], torch.ones(*labels.shape, 1))


def probabilities(vector, centers, temperature):
    scores = [math.exp(float(vector.detach() @ center) / temperature) for center in centers]
    return [score / sum(scores) for score in scores]


def cross_entropy(expected, vector, centers, temperature):
    """-sum_k q_k log p_k, expected as {cluster: q_k} or a list over clusters."""
    expected = expected if isinstance(expected, dict) else dict(enumerate(expected))
    found = probabilities(vector, centers, temperature)
    return -sum(share * math.log(found[k]) for k, share in expected.items())


def mean_over_images_and_heads(centers, ask, images=range(B)):
    """ask(image, head, its centers) -> a loss."""
    total = 0.0
    for head, head_centers in enumerate(centers):
        total += sum(ask(image, head, head_centers) for image in images) / len(images)
    return total / len(centers)


@pytest.mark.parametrize("beta", [1.0, 0.5, 0.0])
def test_single_view(centers, labels, beta):
    view = output(1)
    found = Objective(temperature=0.1, prediction_share=beta)([view], [], hard(labels), centers)

    def ask(image, head, heads_centers):
        label = {int(labels[image, head]): 1.0}
        prediction = cross_entropy(label, view.prediction[image], heads_centers, 0.1)
        projection = cross_entropy(label, view.projection[image], heads_centers, 0.1)
        return beta * prediction + (1 - beta) * projection

    assert found.value.item() == pytest.approx(mean_over_images_and_heads(centers, ask), rel=1e-5)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 0.0])
def test_two_views(centers, labels, alpha):
    """For both branches alpha [CE(v1, y) + CE(v2, y)] + (1 - alpha) [CE(v1, s2) + CE(v2, s1)], times 1/4."""
    views = [output(1), output(2)]
    objective = Objective(temperature=0.05, label_weight=alpha, prediction_share=0.5)
    found = objective(views, [], hard(labels), centers)

    def ask(image, head, c):
        label = {int(labels[image, head]): 1.0}
        s1, s2 = (probabilities(view.projection[image], c, 0.05) for view in views)
        total = 0.0
        for branch in ("prediction", "projection"):
            v1, v2 = (getattr(view, branch)[image] for view in views)
            total += alpha * (cross_entropy(label, v1, c, 0.05) + cross_entropy(label, v2, c, 0.05))
            total += (1 - alpha) * (cross_entropy(s2, v1, c, 0.05) + cross_entropy(s1, v2, c, 0.05))
        return total / 4

    assert found.value.item() == pytest.approx(mean_over_images_and_heads(centers, ask), rel=1e-5)


@pytest.mark.parametrize("n_small", [6, 1])
def test_multi_crop(centers, labels, n_small):
    """Two large views as above times 1/2; 1/(8S) sum_s [2 alpha CE(s, y) + (1 - alpha) CE(s, s1 + s2)]."""
    alpha = 0.2
    large, small = [output(1), output(2)], [output(10 + s) for s in range(n_small)]
    objective = Objective(0.05, alpha, 0.5)
    found = objective(large, small, hard(labels), centers)
    two_views = objective(large, [], hard(labels), centers).value.item()  # tested above

    def ask(image, head, c):
        label = {int(labels[image, head]): 1.0}
        s1, s2 = (probabilities(view.projection[image], c, 0.05) for view in large)
        both = [one + other for one, other in zip(s1, s2, strict=True)]
        total = 0.0
        for branch in ("prediction", "projection"):
            for view in small:
                v = getattr(view, branch)[image]
                total += 2 * alpha * cross_entropy(label, v, c, 0.05)
                total += (1 - alpha) * cross_entropy(both, v, c, 0.05)
        return total / (4 * n_small)

    expected = two_views / 2 + mean_over_images_and_heads(centers, ask) / 2
    assert found.value.item() == pytest.approx(expected, rel=1e-5)


def test_averaged_labels_weigh_by_the_exponential_of_their_shares(centers):
    """q_k proportional to exp(p_k / 0.5) over the labels that an image bore at all."""
    memory = LabelMemory(B, HEADS)
    memory.begin_averaging()
    generator = torch.Generator().manual_seed(3)
    history = [
        torch.stack([torch.randint(k, (B,), generator=generator) for k in HEADS], dim=1) for _ in range(4)
    ]
    for written in history:
        memory.write(torch.arange(B), written)
    objective = Objective(temperature=0.1)
    target = objective.target(*memory.read_average(torch.arange(B)), averaging=True)
    view = output(1)
    found = objective([view], [], target, centers)

    def ask(image, head, c):
        borne = [int(written[image, head]) for written in history]
        weights = {k: math.exp(borne.count(k) / 4 / 0.5) for k in borne}
        return cross_entropy(
            {k: w / sum(weights.values()) for k, w in weights.items()}, view.prediction[image], c, 0.1
        )

    assert found.value.item() == pytest.approx(mean_over_images_and_heads(centers, ask), rel=1e-5)
    assert torch.allclose(target.weights.sum(dim=-1), torch.ones(B, len(HEADS)))


def test_one_label_is_the_same_target_in_both_stages(centers, labels):
    memory = LabelMemory(B, HEADS)
    memory.write(torch.arange(B), labels)
    before = SINGLE.target(*memory.read_average(torch.arange(B)), averaging=False)
    memory.begin_averaging()
    after = SINGLE.target(*memory.read_average(torch.arange(B)), averaging=True)
    view = output(1)
    losses = [SINGLE([view], [], target, centers).value.item() for target in (before, after)]
    assert losses[0] == losses[1] == SINGLE([view], [], hard(labels), centers).value.item()


@pytest.mark.parametrize("averaging", [False, True])
@pytest.mark.parametrize("objective", [SINGLE, TWO])
def test_images_without_a_label_are_left_out(centers, labels, objective, averaging):
    memory = LabelMemory(B, HEADS)
    memory.write(torch.tensor([0, 3]), labels[[0, 3]])
    if averaging:
        memory.begin_averaging()
    target = objective.target(*memory.read_average(torch.arange(B)), averaging=averaging)
    views = [output(1), output(2)]
    found = objective(views, [output(3)], target, centers).value
    rows = [0, 3]
    cut = [Output(view.projection[rows], view.prediction[rows]) for view in (*views, output(3))]
    alone = objective(cut[:2], cut[2:], hard(labels[rows]), centers).value
    assert found.item() == pytest.approx(alone.item(), rel=1e-6)
    found.backward()
    assert not views[0].prediction.grad[[1, 2, 4]].any()
    assert views[0].prediction.grad[rows].any(dim=1).all()


@pytest.mark.parametrize("averaging", [False, True])
@pytest.mark.parametrize("objective", [SINGLE, TWO])
def test_no_labels_at_all_give_a_loss_of_zero(centers, objective, averaging):
    memory = LabelMemory(B, HEADS)
    if averaging:
        memory.begin_averaging()
    target = objective.target(*memory.read_average(torch.arange(B)), averaging=averaging)
    views = [output(1), output(2)]
    loss = objective(views, [output(3)], target, centers)
    loss.value.backward()
    assert loss.value.item() == 0
    assert float(loss.agreement) == 0
    assert all(not view.prediction.grad.any() for view in views)


def test_soft_assignments_and_centers_are_given_not_learned(centers, labels):
    """Numerically: the gradient is that of the loss whose soft targets are held still."""
    objective, views = TWO, [output(1), output(2)]
    learned = [c.clone().requires_grad_() for c in centers]
    objective(views, [output(3)], hard(labels), learned).value.backward()
    assert all(c.grad is None or not c.grad.any() for c in learned)

    still = [[torch.softmax(v.projection.detach() @ c.t() / 0.05, 1) for c in centers] for v in views]
    free = [Output(v.projection.detach().clone().requires_grad_(), v.prediction) for v in views]
    loss = torch.zeros(())
    for mine, other in ((0, 1), (1, 0)):
        for head, c in enumerate(centers):
            logs = torch.log_softmax(free[mine].projection @ c.t() / 0.05, 1)
            by_label = -logs[torch.arange(B), labels[:, head]]
            by_view = -(still[other][head] * logs).sum(1)
            loss = loss + (0.2 * by_label + 0.8 * by_view).mean() / 4 / len(centers)
    loss.backward()
    alone = [Output(v.projection.detach().clone().requires_grad_(), v.prediction.detach()) for v in views]
    objective(alone, [], hard(labels), centers).value.backward()
    for mine, expected in zip(alone, free, strict=True):
        assert torch.allclose(mine.projection.grad, expected.projection.grad, atol=1e-5)


def test_gradient_equals_finite_differences(labels):
    centers = [unit(k, D, seed=90 + k).double() for k in HEADS]

    def loss(prediction, small):
        views = [
            Output(unit(B, D, seed=1).double(), prediction),
            Output(unit(B, D, seed=2).double(), prediction),
        ]
        target = Target(labels[..., None], torch.ones(*labels.shape, 1, dtype=torch.float64))
        return Objective(0.5, 0.2, 0.5)(views, [Output(small, small)], target, centers).value

    inputs = [unit(B, D, seed=s).double().requires_grad_() for s in (5, 6)]
    assert torch.autograd.gradcheck(loss, inputs)


def test_agreement_is_the_share_of_predictions_that_are_the_label(centers):
    view = output(1)
    predicted = torch.stack([(view.prediction @ c.t()).argmax(1) for c in centers], dim=1)
    labels = predicted.clone()
    labels[0] = (labels[0] + 1) % 4  # one of five images differs, in both heads
    labels[1, 0] = (labels[1, 0] + 1) % 4  # another in one
    found = SINGLE([view], [], hard(labels), centers)
    assert float(found.agreement) == pytest.approx((3 / 5 + 4 / 5) / 2)
    assert not found.agreement.requires_grad


def test_the_loss_is_computed_in_float32_under_autocast(centers, labels):
    view = output(1)
    expected = SINGLE([view], [], hard(labels), centers).value
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = SINGLE([view], [], hard(labels), centers).value
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


def test_an_untrained_loss_lies_near_ln_k():
    vectors = [unit(2000, 128, seed=s) for s in (1, 2)]
    centers = [unit(k, 128, seed=k) for k in (30, 40)]
    labels = torch.stack([torch.arange(2000) % 30, torch.arange(2000) % 40], dim=1)
    found = Objective(temperature=1.0)([Output(*vectors)], [], hard(labels), centers)
    assert found.value.item() == pytest.approx((math.log(30) + math.log(40)) / 2, rel=0.01)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("label_weight", 1.1, r"objective.label_weight must lie in \[0, 1\], got 1.1"),
        ("prediction_share", -0.1, "objective.prediction_share"),
        ("prediction_share", math.nan, "objective.prediction_share"),
        ("decorrelation", -0.1, "objective.decorrelation must not be negative, got -0.1"),
        ("decorrelation", math.nan, "objective.decorrelation"),
        ("rotation", -1, "objective.rotation must not be negative, got -1"),
        ("temperature", 0, "objective.temperature must be positive, got 0"),
        ("temperature", -1, "objective.temperature must be positive, got -1"),
    ],
)
def test_bad_weights_are_refused(name, value, message):
    with pytest.raises(ConfigError, match=message):
        Objective(**{name: value})


@pytest.mark.parametrize("n_views", [1, 2])
def test_decorrelation_adds_what_numpy_says(centers, labels, n_views):
    large = [output(seed) for seed in range(n_views)]
    plain, weighted = (
        Objective(0.1, 0.5, decorrelation=weight)(large, [], hard(labels), centers).value
        for weight in (0.0, 0.3)
    )
    expected = 0.0
    for view in large:
        correlation = np.corrcoef(view.projection.detach().numpy().T)
        expected += ((correlation**2).sum() - len(correlation)) / len(correlation) / n_views
    assert (weighted - plain).item() == pytest.approx(0.3 * expected, rel=1e-4)


def test_rotation_prediction_adds_cross_entropy_and_is_no_part_of_the_clusters_loss(centers, labels):
    logits = torch.randn(B, 4, generator=torch.Generator().manual_seed(1))
    turns = torch.tensor([0, 1, 2, 3, 1])
    view, target = output(1)._replace(rotation_logits=logits), hard(labels)._replace(turns=turns)
    found = Objective(rotation=0.4)([view, output(2)], [], target, centers)
    plain = Objective()([output(1), output(2)], [], hard(labels), centers)
    expected = -sum(float(logits[i].softmax(0)[turns[i]].log()) for i in range(B)) / B
    assert (found.value - plain.value).item() == pytest.approx(0.4 * expected, rel=1e-4)
    assert found.clusters.item() == plain.clusters.item() == plain.value.item()
    for output_, target_ in ((output(1), target), (view, hard(labels))):
        with pytest.raises(
            ConfigError, match="needs the first output's rotation_logits and the target's turns"
        ):
            Objective(rotation=0.4)([output_], [], target_, centers)


def test_decorrelation_spreads_a_collapsed_projection():
    """Rank one and a little noise; following the gradient alone it fills its dimensions."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(256, 1, generator=generator) @ torch.randn(1, 8, generator=generator)
    rows = (rows + 0.1 * torch.randn(256, 8, generator=generator)).requires_grad_()
    before = redundancy(rows).item()
    optimizer = torch.optim.Adam([rows], lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        redundancy(rows).backward()
        optimizer.step()
    assert before > 4
    assert redundancy(rows).item() < 0.5
