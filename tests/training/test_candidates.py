"""The network that a machine has time for: chosen by measured times, the same each time, kept, and said in words."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import coke
from coke.run import Run
from coke.training.candidates import ENOUGH, MARGIN, Candidate, candidates, fitting, seconds_per_image
from coke.training.plan import make_plan
from coke.training.schedule import FEW_EPOCHS
from tiny_runs import write_textures

SMALL, LARGE = candidates(5000, 32), candidates(5000, 375)


@given(
    st.sampled_from([SMALL, LARGE]),
    st.lists(st.floats(1e-3, 1e5), min_size=3, max_size=3),
    st.floats(0.01, 1e4),
    st.floats(1 / MARGIN, MARGIN, exclude_min=True, exclude_max=True),
)
def test_the_strongest_that_has_time_is_taken_and_a_margin_tells_where_that_is_certain(
    options: list[Candidate], seconds: list[float], minutes: float, other: float
) -> None:
    times = dict(zip(options, seconds, strict=True))
    taken, why = fitting(options, times.__getitem__, minutes=minutes, epochs=200)
    fit = [option for option in options if 60 * minutes / times[option] >= option.least]
    assert taken == (fit or options[-1:])[0]
    if "near the limit" not in why:  # so many times as slow or as fast makes no difference
        again = fitting(options, lambda option: other * times[option], minutes=minutes, epochs=200)
        assert again[0] == taken


def test_words_say_what_the_others_would_take() -> None:
    taken, why = fitting(SMALL, {SMALL[0]: 216.0, SMALL[1]: 12.0}.__getitem__, minutes=60, epochs=200)
    assert taken.backbone == "coke_conv5_w24"
    assert why == (
        "on this machine coke_resnet18_small would take 12 hours for 200 epochs; "
        "coke_conv5_w24 takes 40 minutes, of max_minutes=60"
    )
    taken, why = fitting(SMALL, lambda option: 30.0, minutes=3, epochs=200)
    assert taken.backbone == "coke_conv5_w16"
    assert "coke_conv5_w16 has time for about 6 of 200 epochs in max_minutes=3" in why
    taken, why = fitting(SMALL, lambda option: 60.0, minutes=1.1 * ENOUGH, epochs=200)
    assert taken.backbone == "coke_resnet18_small"
    assert "coke_resnet18_small is near the limit" in why
    assert why.endswith("backbone=NAME")


@pytest.mark.parametrize(
    ("side", "size", "expected"),
    [
        (32, None, ["coke_resnet18_small 32", "coke_conv5_w24 32", "coke_conv5_w16 32"]),
        (3, None, ["coke_resnet18_small 8", "coke_conv5_w24 8", "coke_conv5_w16 8"]),
        (375, None, ["resnet18 224", "resnet18 128", "coke_conv5_w24 64"]),
        (100, None, ["resnet18 96", "coke_conv5_w24 64"]),
        (375, 160, ["resnet18 160"]),
        (375, 48, ["coke_resnet18_small 48", "coke_conv5_w24 48", "coke_conv5_w16 48"]),
    ],
)
def test_candidates_from_the_strongest_to_the_fastest(
    side: int, size: int | None, expected: list[str]
) -> None:
    assert [f"{option.backbone} {option.size}" for option in candidates(5000, side, size)] == expected


def test_a_pass_is_timed_once_and_leaves_no_trace() -> None:
    before = torch.get_rng_state()
    slow, fast = (seconds_per_image(name, 16, "cpu") for name in ("coke_resnet18_small", "coke_conv5_w16"))
    assert slow > 4 * fast  # eighty times the arithmetic
    assert torch.equal(torch.get_rng_state(), before)
    assert seconds_per_image("coke_resnet18_small", 16, "cpu") == slow


def test_time_decides_and_a_resumption_does_not_ask_again(tmp_path: Path) -> None:
    photos = write_textures(tmp_path / "photos", 60)

    def network(**keys: object) -> str:
        return make_plan(photos, None, {"accelerator": "cpu", **keys}).config.backbone

    assert network(max_minutes=1e6) == "coke_conv5_w24"
    assert network(max_minutes=1e-5) == "coke_conv5_w16"
    assert network(max_minutes=1e-5, backbone="coke_resnet18_small") == "coke_resnet18_small"
    keys = {"epochs": 2, "linear_probe": False, "tensorboard": False, "accelerator": "cpu"}
    run = coke.pretrain(photos, out=tmp_path / "run", overrides=keys)
    assert Run(run.path).config["backbone"] == "coke_conv5_w24"
    resumed = make_plan(None, None, {"max_minutes": 1e-5}, run=run)
    assert resumed.config.backbone == "coke_conv5_w24"
    assert not any(reason.startswith("backbone") for reason in resumed.reasons)


def test_several_processes_and_recipes_that_name_their_network_are_not_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each process would measure for itself, and README's first command waits for nothing."""
    photos = write_textures(tmp_path / "photos", 60)
    before = seconds_per_image.cache_info()
    monkeypatch.setenv("WORLD_SIZE", "2")
    plan = make_plan(photos, None, {"accelerator": "cpu", "max_minutes": 1e-5})
    assert plan.config.backbone == "coke_conv5_w24"
    monkeypatch.delenv("WORLD_SIZE")
    assert make_plan(None, None, {}).config.backbone == "coke_conv5_w16"
    assert seconds_per_image.cache_info() == before


def test_large_networks_are_for_many_images_and_much_time(tmp_path: Path) -> None:
    photos = write_textures(tmp_path / "photos", 60, size=96)
    plan = make_plan(photos, None, {"accelerator": "cpu", "max_minutes": 1e6})
    assert (plan.config.backbone, plan.config.image_size) == ("resnet18", 96)
    plan = make_plan(photos, None, {"accelerator": "cpu", "max_minutes": 1e-5})
    assert (plan.config.backbone, plan.config.image_size) == ("coke_conv5_w24", 64)
    (said,) = [reason for reason in plan.reasons if reason.startswith("backbone")]
    assert re.search(
        r"resnet18 at 96 px would take (\d+ minutes|\d+ hours|about a minute) for 200 epochs", said
    )
    assert (
        "view size 64 px: the median of the images' shorter sides is 96 px, and larger ones want"
        in "\n".join(plan.reasons)
    )
    assert FEW_EPOCHS < ENOUGH
