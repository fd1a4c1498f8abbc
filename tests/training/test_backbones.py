"""The backbones under their timm names: what the small stem leaves, what the docstrings promise."""

import re

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch.utils.flop_counter import FlopCounterMode

import coke.backbones
from coke.errors import ConfigError
from coke.images.views import View
from coke.method.objective import Objective
from coke.model.files import Preprocessing, write_backbone
from coke.training.backbone import check_architecture, check_backbone, load_backbone, make_backbone
from coke.training.config import Config
from coke.training.plan import make_plan

NAMES = timm.list_models("coke_*")
WIDTHS = {
    "coke_resnet18_small": 512,
    "coke_resnet34_small": 512,
    "coke_resnet50_small": 2048,
    "coke_conv5_w16": 128,
    "coke_conv5_w24": 192,
    "coke_conv5_w32": 256,
}


def config(backbone="coke_conv5_w16", **changes):
    values = {
        "recipe": "auto",
        "data": "textures",
        "mean": (0.4, 0.5, 0.6),
        "std": (0.1, 0.2, 0.3),
        "views": (View(size=32),),
        "n_clusters": (4,),
        "dual_lr": (1.0,),
        "epochs": 3,
        "batch_size": 8,
        "learning_rate": 0.1,
    }
    return Config(backbone=backbone, **{**values, **changes})


SEEN = Preprocessing(32, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def test_all_are_known_to_timm():
    assert set(NAMES) == set(WIDTHS)


@pytest.mark.parametrize("name", NAMES)
def test_maps_are_an_eighth_of_the_image_and_figures_are_as_documented(name):
    backbone = timm.create_model(name, num_classes=0).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        features = backbone(torch.zeros(1, 3, 32, 32))
    assert features.shape == (1, backbone.num_features) == (1, WIDTHS[name])
    assert backbone.forward_features(torch.zeros(1, 3, 32, 32)).shape[2:] == (4, 4)
    assert backbone.forward_features(torch.zeros(1, 3, 24, 24)).shape[2:] == (3, 3)
    documented = getattr(coke.backbones, name).__doc__
    assert f"{WIDTHS[name]:,} features" in documented
    figure = re.search(r"([\d.]+) ([MG])FLOP forward at 32 px", documented)
    expected = float(figure[1]) * {"M": 1e6, "G": 1e9}[figure[2]]
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.04)


@pytest.mark.parametrize("name", NAMES)
def test_a_classifier_can_be_had(name):
    backbone = timm.create_model(name, num_classes=7, in_chans=1).eval()
    assert backbone(torch.zeros(1, 1, 32, 32)).shape == (1, 7)
    backbone.reset_classifier(0)
    assert backbone(torch.zeros(1, 1, 32, 32)).shape == (1, WIDTHS[name])


@pytest.mark.parametrize("name", ["coke_resnet18_small", "coke_conv5_w16"])
def test_written_weights_load_strictly_into_timm(name, tmp_path):
    path = tmp_path / "backbone.safetensors"
    trained = make_backbone(config(name)).train()
    trained = trained.to(memory_format=torch.channels_last)
    trained(torch.randn(4, 3, 32, 32))  # batch statistics too
    write_backbone(path, trained, name, SEEN)
    images = torch.randn(2, 3, 32, 32)
    expected = trained.eval()(images)
    loaded = timm.create_model(name, num_classes=0, checkpoint_path=str(path)).eval()
    assert torch.allclose(loaded(images), expected, atol=1e-5)
    for key, value in trained.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key
    again = load_backbone(config(name), path).eval()
    assert torch.allclose(again(images), expected, atol=1e-5)
    with pytest.raises(RuntimeError, match=r"Missing|Unexpected|size mismatch"):
        timm.create_model("coke_conv5_w24", num_classes=0, checkpoint_path=str(path))


def test_a_backbone_of_timms_own_is_written_for_timm(tmp_path):
    path = tmp_path / "backbone.safetensors"
    backbone = make_backbone(config("resnet10t"))
    write_backbone(path, backbone, "resnet10t", SEEN)
    loaded = timm.create_model("resnet10t", num_classes=0, checkpoint_path=str(path))
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in backbone.state_dict().items())


def test_transformers_are_built_for_the_view():
    chosen = config("vit_tiny_patch16_224", views=(View(size=48),))
    assert check_backbone(make_backbone(chosen), chosen) == 192


def test_a_backbone_must_take_every_view():
    two_sizes = (View(size=48), View(size=32, clusters=False))
    chosen = config("vit_tiny_patch16_224", views=two_sizes)
    with pytest.raises(ConfigError, match="does not take images of 32 px"):
        check_backbone(make_backbone(chosen), chosen)
    chosen = config("vit_tiny_patch16_224", views=(View(size=48),), objective=Objective(rotation=0.4))
    with pytest.raises(ConfigError, match=r"does not take images of 24 px.*: set objective.rotation=0"):
        check_backbone(make_backbone(chosen), chosen)
    chosen = config(views=two_sizes)
    assert check_backbone(make_backbone(chosen), chosen) == 128


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(
        ConfigError, match=r"unknown backbone 'coke_resnet18_smal' \(did you mean 'coke_resnet18_small'"
    ):
        make_backbone(config("coke_resnet18_smal"))
    with pytest.raises(ConfigError, match="custom:Mine is a module of your own: give it as backbone="):
        make_backbone(config("custom:Mine"))


@pytest.mark.parametrize("name", NAMES)
def test_timms_words_are_honoured(name, tmp_path):
    """Weights from a file through ``pretrained``, feature maps, and no word that is silently dropped."""
    whole, images = timm.create_model(name, num_classes=0).eval(), torch.randn(2, 3, 32, 32)
    save_file(whole.state_dict(), tmp_path / "weights.safetensors")
    file = {"file": str(tmp_path / "weights.safetensors")}
    with torch.inference_mode():
        for classes in (0, 5):
            loaded = timm.create_model(
                name, num_classes=classes, pretrained=True, pretrained_cfg_overlay=file
            ).eval()
            features = loaded.forward_head(loaded.forward_features(images), pre_logits=True)
            assert torch.allclose(features, whole(images), atol=1e-6)
        maps = timm.create_model(name, features_only=True, out_indices=(1, 4))
        found = maps(images)
    assert [each.shape[1] for each in found] == maps.feature_info.channels()
    assert [32 // each.shape[2] for each in found] == maps.feature_info.reduction()
    with pytest.raises(RuntimeError, match="No pretrained weights exist"):
        timm.create_model(name, pretrained=True)
    with pytest.raises(TypeError, match="nonsense"):
        timm.create_model(name, nonsense=3)


def test_patches_that_leave_pixels_over_are_refused_with_what_fits():
    fits = config("vit_tiny_patch16_224", views=(View(size=48),))
    assert check_backbone(make_backbone(fits), fits) == 192
    check_architecture(fits)
    for name, size, said in (
        (
            "vit_tiny_patch16_224",
            56,
            "views of 56 px cannot be cut into vit_tiny_patch16_224's patches of 16 px",
        ),
        ("mixer_s16_224", 56, "choose views.size=48 or 64"),
        ("vit_small_patch14_dinov2", 10, "patches of 14 px: choose views.size=14"),
        ("xcit_nano_12_p16_224", 20, "xcit_nano_12_p16_224 cannot be made for views of 20 px: .*patch_size"),
        ("convnext_tiny", 20, "the backbone does not take images of 20 px"),
    ):
        with pytest.raises(ConfigError, match=said):
            check_architecture(config(name, views=(View(size=size),)))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"backbone": "resnet81"}, "unknown backbone 'resnet81'"),
        (
            {"backbone": "vit_tiny_patch16_224", "views.size": 20},
            "patches of 16 px: choose views.size=16 or 32",
        ),
        (
            {"backbone": "vit_tiny_patch16_224", "views": [{"size": 48}, {"size": 32}]},
            "does not take images of 32 px",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_images_are_read(overrides, said, tmp_path):
    with pytest.raises(ConfigError, match=said):
        make_plan(tmp_path / "no such folder", "auto", overrides)
