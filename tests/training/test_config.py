"""Settings from words and YAML to a checked record, and back."""

import json
import math
import os

import numpy as np
import pytest
import yaml

from coke.errors import ConfigError
from coke.images.views import View
from coke.method.labels import SLOTS
from coke.method.objective import AVERAGE_TEMPERATURE, LARGE_VIEW_SHARE, Objective
from coke.training.auto import check_settings, template
from coke.training.checkpoint import KEPT
from coke.training.config import AUTO, FREE, Config, chosen, schema, without_fixed
from coke.training.recipes import RECIPES
from coke.training.schedule import TRUST_COEFFICIENT
from coke.training.settings import differences, override, parse_overrides

SETTINGS = {
    "recipe": "auto",
    "data": "textures",
    "mean": [0.5, 0.5, 0.5],
    "std": [0.2, 0.2, 0.2],
    "views": [{"size": 24}, {"size": 12, "clusters": False, "count": 3}],
    "backbone": "coke_conv5_w16",
    "n_clusters": [10, 20],
    "dual_lr": [1.0, 2.0],
    "epochs": 10,
    "batch_size": 32,
    "learning_rate": 0.1,
}


def with_words(*words):
    return Config(**chosen(SETTINGS, parse_overrides(list(words))))


def test_records_are_typed():
    config = Config(**SETTINGS)
    assert config.n_clusters == (10, 20)
    assert config.views == (View(size=24), View(size=12, clusters=False, count=3))
    assert config.objective == Objective()
    assert config.large_views == [View(size=24)]
    assert config.small_views == [config.views[1]] * 3
    assert config.image_size == 24


def test_yaml_and_back_is_the_same():
    config = with_words("objective.temperature=0.07", "clip_norm=5", "precision=bf16-mixed", "devices=2")
    text = yaml.safe_dump(config.as_dict())
    assert Config(**yaml.safe_load(text)) == config


@pytest.mark.parametrize(
    ("word", "key", "value"),
    [
        ("epochs=20", "epochs", 20),
        ("learning_rate=1e-3", "learning_rate", 0.001),
        ("learning_rate=1", "learning_rate", 1.0),
        ("weight_decay=5E-4", "weight_decay", 5e-4),
        ("knn_images=1e4", "knn_images", 10_000),
        ("clip_norm=null", "clip_norm", None),
        ("tensorboard=false", "tensorboard", False),
        ("n_clusters=[4, 5]", "n_clusters", (4, 5)),
        ("n_clusters.1=7", "n_clusters", (10, 7)),
        ("devices=auto", "devices", "auto"),
        ("data=a/b=c.csv", "data", "a/b=c.csv"),
        ("mean=[0, 1e-1, 0.5]", "mean", (0.0, 0.1, 0.5)),
    ],
)
def test_words(word, key, value):
    found = getattr(with_words(word), key)
    assert found == value
    assert type(found) is type(value)


def test_values_of_numpy_are_plain_numbers():
    values = {
        "epochs": np.int64(2),
        "n_clusters": np.array([3, 4]),
        "dual_lr": [np.float32(1), np.float64(2)],
        "learning_rate": np.array(0.5),
        "tensorboard": np.bool_(False),
        "views.crop": np.array([0.5, 1.0]),
    }
    config = Config(**override(SETTINGS, values))
    assert (config.epochs, config.n_clusters, config.dual_lr) == (2, (3, 4), (1.0, 2.0))
    assert (config.learning_rate, config.tensorboard) == (0.5, False)
    assert {view.crop for view in config.views} == {(0.5, 1.0)}
    assert Config(**yaml.safe_load(yaml.safe_dump(config.as_dict()))) == config
    with pytest.raises(ConfigError, match=r"epochs must be a whole number, got 2\.5"):
        Config(**override(SETTINGS, {"epochs": np.float64(2.5)}))


def test_one_number_is_one_head():
    assert with_words("n_clusters=30", "dual_lr=2").n_clusters == (30,)


def test_dotted_keys_reach_into_lists_and_records():
    config = with_words(
        "views.crop=[0.3, 0.9]", "views.1.size=8", "views.0.crop.0=0.5", "objective.label_weight=0.2"
    )
    assert [view.crop for view in config.views] == [(0.5, 0.9), (0.3, 0.9)]
    assert [view.size for view in config.views] == [24, 8]
    assert config.objective == Objective(label_weight=0.2)


def test_overriding_leaves_the_settings_alone():
    before = yaml.safe_dump(SETTINGS)
    override(SETTINGS, {"views.crop": [0.5, 0.6], "n_clusters.0": 3, "objective.temperature": 1})
    assert yaml.safe_dump(SETTINGS) == before


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("epoch=20", r"unknown key epoch \(did you mean 'epochs'\?\); known: recipe, data"),
        ("label_slots=5", "unknown key label_slots: no longer a setting, it is 5 in every run: leave it out"),
        ("start=kmeans++", "unknown key start: no longer a setting, it is random in every run"),
        ("dual_decay_epochs=1", "dual_decay_epochs: no longer a setting, it is null in every run"),
        ("objective.large_view_share=1", "objective.large_view_share: no longer a setting, it is 0.5 in"),
        ("objective.temprature=1", r"unknown key objective.temprature \(did you mean 'temperature'"),
        ("views.corp=[0.1, 1]", r"unknown key views.0.corp \(did you mean 'crop'"),
        ("views.0.corp=[0.1, 1]", "unknown key views.0.corp"),
        ("views.2.size=8", "views.2.size: there are 2 entries, counted from 0"),
        ("epochs.more=1", "epochs.more: 10 is a value, it has no 'more'"),
        ("n_clusters.more=1", "n_clusters.more: 10 is a value"),
        ("n_clusters.0.more=1", "n_clusters.0.more: 10 is a value"),
        ("epochs=many", "epochs must be a whole number, got 'many'"),
        ("epochs=1.5", "epochs must be a whole number, got 1.5"),
        ("epochs=true", "epochs must be a whole number, got True"),
        ("epochs=.inf", "epochs must be a whole number, got inf"),
        ("tensorboard=1", "tensorboard must be true or false, got 1"),
        ("learning_rate=fast", "learning_rate must be a number, got 'fast'"),
        ("clip_norm=big", "clip_norm must be a number or null, got 'big'"),
        ("optimizer=adam", "optimizer must be 'sgd' or 'lars' or 'adamw', got 'adam'"),
        ("precision=16", "precision must be '32-true' or"),
        ("n_clusters=[4, x]", r"n_clusters.1 must be a whole number, got 'x'"),
        ("mean=[0.1, 0.2]", r"mean must be \[a number, a number, a number\], got \[0.1, 0.2\]"),
        ("views.crop=0.5", r"views.0.crop must be \[a number, a number\], got 0.5"),
        ("views.flip=true", "views.0.flip must be a number, got True"),
        ("devices=1.5", "devices must be a whole number or text, got 1.5"),
        ("views=3", "views must be a list of a mapping of keys, got 3"),
        ("views=[3]", "views.0 must be a mapping of keys, got 3"),
        ("objective=0.1", "objective must be a mapping of keys, got 0.1"),
        ("init=3", "init must be text or null, got 3"),
    ],
)
def test_mistakes_are_named(word, message):
    with pytest.raises(ConfigError, match=message):
        with_words(word)


@pytest.mark.parametrize("word", ["epochs", "=3", "n_clusters=[4", "x={a"])
def test_words_that_are_no_assignments_are_refused(word):
    with pytest.raises(ConfigError):
        parse_overrides([word])


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("min_size_ratio=1.5", r"min_size_ratio must lie in 0 \.\.\. 1, got 1.5"),
        ("min_size_ratio=.nan", "got nan"),
        ("n_clusters=[10, 0]", "n_clusters must lie in 1"),
        ("n_clusters=[]", "dual_lr has 2 values for 0 heads|at least one head"),
        ("dual_lr=[1.0]", "dual_lr has 1 values for 2 heads"),
        ("dual_lr=[1.0, -1]", "dual_lr must lie in 0"),
        ("std=[0.1, 0, 0.1]", "std must be positive"),
        ("batch_size=0", "batch_size must lie in 1"),
        ("accumulate=0", "accumulate must lie in 1"),
        ("clustering_epochs=0", "clustering_epochs must lie in 1"),
        ("epochs=1", "epochs=1 leaves nothing to train on: 1 of them only cluster"),
        ("views.clusters=false", "at least one view must have clusters: true"),
        ("views.size=2", "views.size must be at least 4 px"),
        ("objective.temperature=0", "objective.temperature must be positive"),
        ("clip_norm=0", "clip_norm must lie in"),
        ("workers=-1", "workers must lie in 0"),
    ],
)
def test_values_out_of_range_are_named(word, message):
    with pytest.raises(ConfigError, match=message):
        with_words(word)


def test_a_missing_key_is_no_config():
    settings = {key: value for key, value in SETTINGS.items() if key != "epochs"}
    with pytest.raises(ConfigError, match="epochs is missing"):
        Config(**settings)


def test_names_that_are_not_utf8_are_refused():
    with pytest.raises(ConfigError, match="not UTF-8"):
        Config(**{**SETTINGS, "data": os.fsdecode(b"caf\xe9")})


def test_replacing_checks_again():
    config = Config(**SETTINGS)
    assert config.replaced(epochs=20).epochs == 20
    with pytest.raises(ConfigError, match="epochs=1 leaves nothing"):
        config.replaced(epochs=1)


def test_checking_settings_before_they_are_complete():
    assert (
        check_settings({"recipe": "auto", "data": "x", "views": [{}], "epochs": "auto", "seed": 3}).seed == 3
    )
    for words, message in (
        ({"seed": "auto"}, "seed must be a whole number, got 'auto'"),
        ({"batchsize": 3}, "did you mean 'batch_size'"),
        ({"n_clusters": "auto", "dual_lr": [1, 2], "momentum": 0}, "nesterov looks ahead"),
        ({"n_clusters": 3, "dual_lr": [1, 2]}, "dual_lr has 2 values for 1 heads"),
    ):
        with pytest.raises(ConfigError, match=message):
            check_settings({"recipe": "auto", "data": "x", "views": [{}], **words})


def test_what_is_fixed_is_what_holds():
    constants = {
        "label_slots": SLOTS,
        "trust_coefficient": TRUST_COEFFICIENT,
        "keep_checkpoints": KEPT,
        "objective.large_view_share": LARGE_VIEW_SHARE,
        "objective.average_temperature": AVERAGE_TEMPERATURE,
    }
    assert {**Config.FIXED, **constants} == Config.FIXED
    assert (LARGE_VIEW_SHARE, AVERAGE_TEMPERATURE) == (0.5, 0.5)


def test_names_of_old_are_those_of_today():
    """In words, in mappings and in a run's own file; a figure given by today's name wins."""
    assert with_words("objective.turning=0.4").objective == Objective(rotation=0.4)
    old = {**SETTINGS, "recipe": "cifar10-companions", "objective": {"turning": 0.4, "temperature": 0.2}}
    config = Config(**without_fixed(old)[0])
    assert config.recipe == "cifar10-auxiliary"
    assert config.objective == Objective(temperature=0.2, rotation=0.4)
    assert Config(**chosen(old, {"objective.rotation": 0.3})).objective.rotation == 0.3
    assert "turning" not in str(config.as_dict())


def test_free_keys_exist_and_decide_nothing_that_is_learned():
    names = set(Config.model_fields)
    assert names | {"keep_checkpoints"} == names | FREE
    assert {
        *(
            "data",
            "epochs",
            "max_minutes",
            "accelerator",
            "devices",
            "compile",
            "workers",
            "knn_every",
            "knn_images",
        ),
        *(
            "checkpoint_epochs",
            "checkpoint_minutes",
            "keep_checkpoints",
            "log_every",
            "tensorboard",
            "linear_probe",
        ),
        *("max_unreadable_share", "max_image_pixels", "cache", "image_column", "label_column"),
    } == FREE


def test_keys_without_a_default_are_those_that_images_decide():
    required = {key for key, field in Config.model_fields.items() if field.is_required()}
    assert {key for key in AUTO if "." not in key} == required - {"recipe", "data", "views"}


@pytest.mark.parametrize("name", ["auto", "imagenet-2view", "textures"])
def test_schema_for_editors_knows_types_ranges_and_meaning(name):
    shown = template(RECIPES[name])
    found = schema(shown)
    assert json.loads(json.dumps(found)) == found
    assert found["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    keys = found["properties"]
    assert list(keys) == list(shown)
    assert found["additionalProperties"] is False
    assert {key: entry["default"] for key, entry in keys.items()} == shown
    assert (keys["momentum"]["minimum"], keys["momentum"]["maximum"]) == (0, 1)
    assert keys["optimizer"]["enum"] == ["sgd", "lars", "adamw"]
    assert keys["log_every"]["description"] == "steps"
    whole = {"type": "integer", "minimum": 1, "maximum": 2**31 - 1}
    assert keys["n_clusters"]["anyOf"] == [
        {"type": "array", "items": whole, "minItems": 1},
        {"const": "auto"},
        whole,
    ]
    assert keys["epochs"]["anyOf"] == [
        {"type": "integer", "minimum": 1, "maximum": 1_000_000},
        {"const": "auto"},
    ]
    view, objective = found["$defs"]["View"]["properties"], found["$defs"]["Objective"]["properties"]
    assert view["size"]["anyOf"] == [{"type": "integer"}, {"const": "auto"}]
    assert view["flip"]["description"] == "probability of a horizontal flip"
    assert "rotation prediction" in objective["rotation"]["description"]


def test_differences_name_both_values():
    one = with_words().as_dict()
    other = with_words("objective.temperature=0.2", "views.0.size=25", "epochs=11").as_dict()
    found = differences(one, other)
    assert found["objective.temperature"] == (0.1, 0.2)
    assert found["epochs"] == (10, 11)
    assert set(found) == {"objective.temperature", "epochs", "views"}
    assert differences(one, one) == {}
    assert math.isclose(found["objective.temperature"][1], 0.2)
