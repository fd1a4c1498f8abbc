"""What the data decides, that users win over it, and that it says why."""

import math
import re
from dataclasses import replace

import pytest
import torch

from coke.errors import BoundsError, ConfigError, DataError
from coke.images.image_set import ImageSet
from coke.images.table import Pixels
from coke.method.dual_step import CLIMB, LARGEST_HIT
from coke.training.auto import CPU_MINUTES, FEW_IMAGES, IMAGES_PER_CLUSTER, resolve
from coke.training.config import chosen
from coke.training.recipes import RECIPES


def images(n, sizes=((32, 32),)):
    """N images with these sizes in turn; every pixel of the channels has mean 0.5, 0.4, 0.3 and deviation 0.1."""
    sides = torch.tensor([sizes[i % len(sizes)] for i in range(n)], dtype=torch.int32)
    mean = torch.tensor([0.5, 0.4, 0.3], dtype=torch.float64)
    moments = torch.stack([255 * mean, 255**2 * (mean**2 + 0.01)])
    return ImageSet(
        name="made",
        keys=[f"{i}.png" for i in range(n)],
        source=Pixels(torch.empty(0, 3, 1, 1, dtype=torch.uint8)),
        rows=torch.arange(n),
        sizes=sides,
        hashes=torch.zeros(n, 16, dtype=torch.uint8),
        sums=moments * sides.prod(1).double()[:, None, None],
    )


@pytest.fixture
def gpu(monkeypatch):
    """A machine with a GPU, as far as anybody asks."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def auto(split, **overrides):
    return resolve(chosen({**RECIPES["auto"].settings, "recipe": "auto", "data": "x"}, overrides), split)


@pytest.mark.parametrize("n", [4, 5, 7, 17, 100, 999, 5000, 60_000])
def test_any_number_of_images_has_settings_that_hold(n):
    config = auto(images(n)).config
    assert 2 <= config.batch_size <= n
    assert all(2 * k <= n for k in config.n_clusters)
    assert list(config.n_clusters) == sorted(set(config.n_clusters))
    for k, eta in zip(config.n_clusters, config.dual_lr, strict=True):
        climb, hit = config.min_size_ratio * n / k * eta / config.batch_size, eta / config.batch_size
        assert climb == pytest.approx(CLIMB, rel=1e-3) or hit == pytest.approx(LARGEST_HIT, rel=1e-3)
        assert climb <= CLIMB * 1.001
        assert hit <= LARGEST_HIT * 1.001


@pytest.mark.usefixtures("gpu")
def test_cifar_sized_data_get_what_is_known_to_learn():
    config = auto(images(50_000)).config
    assert config.batch_size == 128
    assert 150 <= config.n_clusters[0] <= 200
    assert config.learning_rate == pytest.approx(0.06)
    assert config.backbone == "coke_resnet18_small"
    assert (config.epochs, config.max_minutes) == (200, None)


@pytest.mark.usefixtures("no_gpu")
def test_a_cpu_gets_what_it_can_train():
    """By the same images and keys, without a GPU or where it is not to be used."""
    result = auto(images(5000))
    assert (result.config.backbone, result.config.max_minutes) == ("coke_conv5_w24", CPU_MINUTES)
    said = "\n".join(result.reasons)
    assert re.search(
        r"backbone coke_conv5_w24: on this machine coke_resnet18_small would take \d+ hours for 200 epochs; ",
        said,
    )
    assert f"max_minutes {CPU_MINUTES}: as many epochs as a CPU has time for" in said
    photographs = auto(images(100, ((375, 500),)))
    assert (photographs.config.backbone, photographs.config.image_size) == ("resnet18", 128)
    assert (
        "view size 128 px: the median of the images' shorter sides is 375 px, and larger ones want"
        in "\n".join(photographs.reasons)
    )
    assert auto(images(20_000, ((375, 500),))).config.backbone == "coke_conv5_w24"
    assert auto(images(5000), max_minutes=1e6).config.backbone == "coke_resnet18_small"
    assert auto(images(5000), epochs=30).config.max_minutes is None  # all of them, however long it takes
    assert auto(images(5000), max_minutes=3).config.max_minutes == 3
    assert auto(images(5000), accelerator="cuda").config.backbone == "coke_resnet18_small"
    assert auto(images(5000, ((375, 500),)), **{"views.size": 32}).config.backbone == "coke_conv5_w24"


@pytest.mark.usefixtures("gpu")
def test_a_cpu_beside_a_gpu_is_a_cpu():
    assert auto(images(5000), accelerator="cpu").config.backbone == "coke_conv5_w24"
    assert auto(images(5000)).config.backbone == "coke_resnet18_small"


def test_clusters_grow_like_the_square_root_until_they_are_large_enough():
    """Half the root of N, and from 20,000 images on as was learned on CIFAR-10; never fewer for more images."""
    heads = {n: auto(images(n)).config.n_clusters for n in (10, 262, 1000, 5000, 20_000, 21_000, 50_000)}
    assert heads[10] == (2, 3)
    assert heads[262] == (8, 11, 13)
    assert heads[5000] == (35, 47, 58)
    assert heads[50_000][0] == round(50_000 / IMAGES_PER_CLUSTER)
    assert heads[20_000][0] == round(math.sqrt(20_000) / 2)
    assert list(heads.values()) == sorted(heads.values())


@pytest.mark.parametrize(
    ("n", "overrides", "few"),
    [
        (262, {}, True),
        (FEW_IMAGES - 1, {}, True),
        (FEW_IMAGES, {}, False),
        (262, {"init": "resnet18"}, False),
    ],
)
def test_few_images_are_said_to_be_few_and_what_can_work(n, overrides, few):
    said = [reason for reason in auto(images(n), **overrides).reasons if "images are few" in reason]
    assert len(said) == few
    assert all(
        word in line for line in said for word in ("init=NAME", "more images", "coke embed", "coke cluster")
    )


@pytest.mark.usefixtures("gpu")
def test_a_million_images_get_the_published_batch_and_heads():
    one = images(1)
    split = ImageSet(
        "made", [""] * 1_200_000, one.source, one.rows, one.sizes.expand(1_200_000, 2), one.hashes,
        one.sums.expand(1_200_000, 2, 3),
    )  # fmt: skip
    config = auto(split, optimizer="lars").config
    assert config.batch_size == 1024
    assert config.n_clusters == (3000, 4000, 5000)
    assert config.learning_rate == pytest.approx(1.6)
    assert config.epochs == 400
    assert config.dual_lr[0] == pytest.approx(20, rel=0.06)


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    ("sizes", "size", "backbone"),
    [
        (((32, 32),), 32, "coke_resnet18_small"),
        (((28, 40),), 28, "coke_resnet18_small"),
        (((64, 64),), 64, "coke_resnet18_small"),
        (((3, 5),), 8, "coke_resnet18_small"),
        (((100, 120),), 96, "resnet18"),
        (((375, 500),), 224, "resnet18"),
        (((10, 10), (300, 400), (500, 375)), 224, "resnet18"),
    ],
)
def test_the_view_follows_the_median_of_the_shorter_sides(sizes, size, backbone):
    config = auto(images(300, sizes)).config
    assert [view.size for view in config.views] == [size]
    assert config.backbone == backbone


def test_reasons_name_every_figure():
    split = images(5000)
    result = auto(split)
    config, said = result.config, "\n".join(result.reasons)
    assert f"view size {config.image_size} px" in said
    assert f"backbone {config.backbone}" in said
    assert f"batch {config.batch_size}: {-(-5000 // config.batch_size)} steps an epoch" in said
    assert "K = " + ", ".join(map(str, config.n_clusters)) in said
    assert f"about {5000 / config.n_clusters[0]:.0f} images a cluster of 5,000, half the square root" in said
    assert f"images a cluster of 50,000, one for {IMAGES_PER_CLUSTER}" in "\n".join(
        auto(images(50_000)).reasons
    )
    assert f"learning rate {config.learning_rate:g}" in said
    assert "dual step " + ", ".join(f"{eta:g}" for eta in config.dual_lr) in said
    climb = config.dual_lr[0] / config.batch_size * 0.4 * 5000 / config.n_clusters[0]
    assert f"rises by {round(climb, 2):g}" in said
    assert f"at most {max(config.dual_lr) / config.batch_size:.4f}" in said
    assert f"{config.epochs} epochs" in said
    assert "mean [0.5, 0.4, 0.3]: measured over all 5,000 images" in said
    assert "std [0.1, 0.1, 0.1]" in said
    assert config.mean == (0.5, 0.4, 0.3)
    assert config.std == (0.1, 0.1, 0.1)


def test_what_is_given_is_taken_and_not_explained():
    given = {
        "epochs": 7,
        "n_clusters": [5, 6],
        "batch_size": 50,
        "dual_lr": 2,
        "learning_rate": 0.3,
        "mean": [0.1, 0.1, 0.1],
        "std": [1, 1, 1],
        "views.0.size": 20,
        "backbone": "resnet50",
        "views.crop": [0.5, 1],
        "averaging_share": 0.1,
    }
    result = auto(images(500), **given)
    config = result.config
    assert (config.epochs, config.n_clusters, config.batch_size) == (7, (5, 6), 50)
    assert (config.dual_lr, config.learning_rate) == ((2.0, 2.0), 0.3)
    assert (config.mean, config.std) == ((0.1,) * 3, (1.0,) * 3)
    assert (config.views[0].size, config.backbone) == (20, "resnet50")
    assert [
        line for line in result.reasons if not line.startswith(("objective.", "500 images are few"))
    ] == []


@pytest.mark.parametrize(
    ("overrides", "kept"),
    [
        ({"backbone": "resnet50"}, ("view size", "crop 0.3 to 1", "the last fifth")),
        ({"views.size": 20}, ("backbone", "crop 0.3 to 1", "the last fifth")),
        ({"views.blur": 0.5}, ("view size", "backbone", "the last fifth")),
        ({"views": [{"size": 20}]}, ("backbone", "the last fifth")),
        ({"averaging_share": 0}, ("view size", "backbone", "crop 0.3 to 1")),
    ],
)
def test_reasons_are_of_what_is_not_given(overrides, kept):
    derived = ("view size", "backbone", "crop 0.3 to 1", "the last fifth")
    reasons = auto(images(500), **overrides).reasons
    assert tuple(start for start in derived if any(line.startswith(start) for line in reasons)) == kept


@pytest.mark.parametrize(
    ("sizes", "overrides", "weights"),
    [
        (((32, 32),), {}, (0.01, 1.0)),
        (((32, 32),), {"objective.temperature": 0.2}, (0.01, 1.0)),
        (((32, 32),), {"objective": {"temperature": 0.2}}, (0.01, 1.0)),
        (((32, 32),), {"objective.rotation": 0}, (0.01, 0)),
        (((32, 32),), {"objective.decorrelation": 0.2, "objective.rotation": 0.3}, (0.2, 0.3)),
        (
            ((32, 32),),
            {"backbone": "vit_tiny_patch16_224"},
            (0.01, 0),
        ),  # may not take copies of half the size
        (((32, 32),), {"views.rotation": 180}, (0.01, 0)),  # nothing to tell
        (((300, 400),), {"max_minutes": 1e6}, (0, 0)),
    ],
)
def test_small_images_get_auxiliary_losses_where_nothing_else_is_given(sizes, overrides, weights):
    result = auto(images(500, sizes), **overrides)
    objective, said = result.config.objective, "\n".join(result.reasons)
    assert (objective.decorrelation, objective.rotation) == weights
    assert ("objective.decorrelation 0.01" in said) == (weights[0] == 0.01)
    assert ("objective.rotation 1" in said) == (weights[1] == 1)


def test_a_share_of_nothing_for_averaging_is_kept():
    assert auto(images(500)).config.averaging_share == 0.2
    assert auto(images(500), averaging_share=0).config.averaging_share == 0
    assert auto(images(500), epochs=50).config.averaging_share == 0.2


def test_one_figure_given_leaves_the_others_to_the_data():
    config = auto(images(5000), n_clusters=40, dual_climb=1.0).config
    assert config.n_clusters == (40,)
    assert config.dual_lr[0] / config.batch_size * 0.4 * 5000 / 40 == pytest.approx(1.0, rel=1e-3)


def test_images_without_any_contrast_do_not_divide_by_zero():
    split = images(50)
    flat = split.sums.clone()
    flat[:, 1] = flat[:, 0] ** 2 / split.sizes.prod(1).double()[:, None]
    result = auto(replace(split, sums=flat))
    assert min(result.config.std) > 0
    assert "std [0.001, 0.001, 0.001]: measured over all 50 images, which are all of one colour" in "\n".join(
        result.reasons
    )
    flat[:, 1, 1:] = split.sums[:, 1, 1:]
    said = "\n".join(auto(replace(split, sums=flat)).reasons)
    assert "std [0.001, 0.1, 0.1]: measured over all 50 images; 0.001 stands for 0 in channels" in said


@pytest.mark.parametrize(
    ("n", "overrides", "error", "message"),
    [
        (100, {"n_clusters": 51}, BoundsError, "n_clusters=51 is too many for 100 images .* at most 50"),
        (100, {"n_clusters": [10, 80]}, BoundsError, "n_clusters=80 is too many"),
        (100, {"min_size_ratio": 1.5}, (BoundsError, ConfigError), r"min_size_ratio"),
        (
            100,
            {"batch_size": 101},
            ConfigError,
            r"batch_size=101 does not fit 100 images: choose 2 \.\.\. 100",
        ),
        (100, {"batch_size": 1}, ConfigError, "batch_size=1 does not fit"),
        (1, {}, DataError, "one image is not enough: training tells clusters of at least two"),
        (3, {}, DataError, "3 images are not enough: .* so give four"),
        (
            9,
            {"n_clusters": 1, "objective.rotation": 0.0},
            ConfigError,
            "n_clusters=1 makes one cluster of all",
        ),
        (100, {"n_clusters": []}, ConfigError, "n_clusters must name at least one head"),
        (100, {"seed": -1}, ConfigError, r"seed must lie in 0 \.\.\."),
        (100, {"seed": 10**30}, ConfigError, r"seed must lie in 0 \.\.\."),
        (100, {"dual_lr": [1, 2, 3, 4], "n_clusters": 5}, ConfigError, "dual_lr has 4 values for 1 heads"),
        (100, {"epochs": "many"}, ConfigError, "epochs must be a whole number, got 'many'"),
        (100, {"n_clusters": "few"}, ConfigError, "n_clusters must be a list of a whole number, got 'few'"),
        (100, {"epoch": 3}, ConfigError, "did you mean 'epochs'"),
        (100, {"optimizer": "adam"}, ConfigError, "optimizer must be"),
        (100, {"seed": "auto"}, ConfigError, "seed must be a whole number"),
        (100, {"views": []}, ConfigError, "at least one view must have clusters: true"),
    ],
)
def test_what_cannot_work_is_refused(n, overrides, error, message):
    with pytest.raises(error, match=message):
        auto(images(n), **overrides)
