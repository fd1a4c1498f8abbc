"""Every recipe builds; ImageNet's are the published constants, line by line."""

import pytest
import torch

from coke.errors import ConfigError
from coke.images.image_set import ImageSet
from coke.images.table import Pixels
from coke.images.views import View
from coke.method.labels import SLOTS
from coke.method.objective import AVERAGE_TEMPERATURE, LARGE_VIEW_SHARE
from coke.training.auto import resolve, template
from coke.training.config import AUTO, Config, chosen
from coke.training.recipes import ALIASES, RECIPES, find_recipe
from coke.training.schedule import TRUST_COEFFICIENT, Schedule
from coke.training.settings import override, places

N_IMAGENET = 1_281_167


def images(n, height, width=None):
    """N images of one size, none of which is ever looked at."""
    sizes = torch.tensor([[height, width or height]], dtype=torch.int32).expand(n, 2)
    sums = (
        torch.tensor([[0.5, 0.25], [0.5, 0.26], [0.5, 0.27]], dtype=torch.float64).t()
        * height
        * (width or height)
    )
    sums = sums * torch.tensor([[255.0], [255.0**2]])
    return ImageSet(
        name="made",
        keys=[""] * n,
        source=Pixels(torch.empty(0, 3, height, height, dtype=torch.uint8)),
        rows=torch.arange(1).expand(n),
        sizes=sizes,
        hashes=torch.zeros(1, 16, dtype=torch.uint8).expand(n, 16),
        sums=sums.expand(n, 2, 3),
    )


@pytest.fixture(scope="module")
def imagenet():
    return images(N_IMAGENET, 375, 500)


def resolved(name, split, **overrides):
    return resolve(chosen({**find_recipe(name).settings, "recipe": name, "data": "x"}, overrides), split)


SPLITS = {
    "textures": (5000, 24),
    "cifar10": (50_000, 32),
    "cifar10-2view": (50_000, 32),
    "cifar10-auxiliary": (50_000, 32),
    "auto": (50_000, 32),
}
SPLITS["cifar10-multicrop"] = (50_000, 32)


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_recipe_resolves(name, imagenet):
    split = images(*SPLITS[name]) if name in SPLITS else imagenet
    config = resolved(name, split).config
    assert config.recipe == name
    assert len(config.dual_lr) == len(config.n_clusters)
    assert Config(**config.as_dict()) == config


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_template_names_every_key_and_says_the_same(name, imagenet):
    whole = template(find_recipe(name))
    assert list(whole) == list(Config.model_fields)
    if name == "auto":
        assert {node[key] for dotted in AUTO for node, key in places(whole, dotted)} == {"auto"}
    split = images(*SPLITS[name]) if name in SPLITS else imagenet
    again = resolve({**whole, "data": "x"}, split).config
    assert again == resolved(name, split).config


@pytest.mark.parametrize("name", ["imagenet-1view", "imagenet-2view", "imagenet-multicrop"])
def test_published_optimisation_and_clustering(name, imagenet):
    """Method section 5."""
    config = resolved(name, imagenet).config
    assert config.backbone == "resnet50"
    assert (config.optimizer, TRUST_COEFFICIENT, config.momentum) == ("lars", 0.001, 0.9)
    assert not config.nesterov
    assert (config.weight_decay, config.learning_rate, config.batch_size) == (1e-6, 1.6, 1024)
    assert (config.clustering_epochs, config.warmup_epochs) == (1, 10)
    assert config.precision == "16-mixed"
    assert (config.n_clusters, config.dual_lr) == ((3000, 4000, 5000), (20.0, 20.0, 20.0))
    assert (config.min_size_ratio, config.dim, config.hidden) == (0.4, 128, None)
    assert config.count_carry == 0.0
    assert (SLOTS, AVERAGE_TEMPERATURE) == (5, 0.5)
    assert config.epochs == (800 if name == "imagenet-multicrop" else 1000)


def test_published_single_view(imagenet):
    config = resolved("imagenet-1view", imagenet).config
    assert config.views == (
        View(size=224, crop=(0.08, 1.0), flip=0.5, jitter=(0.8, 0.8, 0.8, 0.2), gray=0.2, blur=0.5),
    )
    assert config.views[0].jitter_probability == 0.8
    assert config.objective.temperature == 0.1
    assert (config.objective.label_weight, config.objective.prediction_share) == (1.0, 1.0)
    schedule = Schedule(1.6, config.epochs, 1, 10, 1252)
    assert [schedule.averages(epoch, config.averaging_share) for epoch in (799, 800)] == [False, True]


def test_published_two_views(imagenet):
    config = resolved("imagenet-2view", imagenet).config
    shared = {"size": 224, "crop": (0.08, 1.0), "flip": 0.5, "jitter": (0.4, 0.4, 0.2, 0.1), "gray": 0.2}
    assert config.views == (View(**shared, blur=1.0), View(**shared, blur=0.1, solarise=0.2))
    assert config.objective.temperature == 0.05
    assert (config.objective.label_weight, config.objective.prediction_share) == (0.2, 0.5)
    assert config.averaging_share == 0


def test_published_multi_crop(imagenet):
    config = resolved("imagenet-multicrop", imagenet).config
    assert config.large_views == list(resolved("imagenet-2view", imagenet).config.views)
    small = View(
        size=96, crop=(0.05, 0.6), jitter=(0.8, 0.8, 0.8, 0.2), gray=0.2, blur=0.5, clusters=False, count=6
    )
    assert config.views[2] == small
    assert len(config.small_views) == 6
    assert LARGE_VIEW_SHARE == 0.5


def test_overrides_win(imagenet):
    config = resolved(
        "imagenet-1view", imagenet, **{"views.blur": 0.1, "dual_lr": [1.0, 2.0, 3.0], "epochs": 5}
    ).config
    assert (config.views[0].blur, config.dual_lr, config.epochs) == (0.1, (1.0, 2.0, 3.0), 5)


def test_recipes_are_never_changed():
    before = str(RECIPES["cifar10-2view"].settings)
    override(RECIPES["cifar10-2view"].settings, {"views.crop": [0.5, 0.6], "objective.temperature": 9})
    assert str(RECIPES["cifar10-2view"].settings) == before


def test_a_name_of_old_still_finds_its_recipe():
    assert find_recipe("cifar10-companions") is RECIPES["cifar10-auxiliary"]
    assert set(ALIASES.values()) <= set(RECIPES)
    assert not set(ALIASES) & set(RECIPES)


def test_unknown_recipes_are_refused_with_the_nearest():
    with pytest.raises(ConfigError, match=r"unknown recipe 'cifar' .*there are: textures, cifar10"):
        find_recipe("cifar")
    with pytest.raises(ConfigError, match=r"did you mean 'imagenet-2view'"):
        find_recipe("imagenet-2views")
