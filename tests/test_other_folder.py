"""A run knows its images from whatever folder it is asked, and takes no others for them."""

import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import coke
from coke.cli import main
from coke.run import Run, absolute
from tiny_runs import SETTINGS, write_textures

RUN = {**SETTINGS, "backbone": "coke_conv5_w16", "epochs": 2}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos, and a run on them that was told of them by their name alone."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        write_textures(Path("photos"), 120)
        coke.pretrain("photos", out="run", overrides=RUN)
    return home


@pytest.fixture
def elsewhere(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Another folder, in which fewer of the photos lie under the same name."""
    for path in sorted((home / "photos").rglob("*.png"))[:40]:
        copy = tmp_path / "photos" / path.relative_to(home / "photos")
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_its_own_images_are_meant(home: Path, elsewhere: Path) -> None:
    run = home / "run"
    assert Run(run).config["data"] == "photos"
    assert Run(run).data == str(home / "photos")
    assert main(["curate", str(run), "--n", "10", "--out", "chosen.parquet"]) == 0
    assert pq.read_metadata("chosen.dropped.parquet").num_rows == 110
    assert main(["explore", str(run), "--map", "pca", "--no-serve", "--out", "seen.parquet"]) == 0
    pictures = pq.read_table("seen.parquet", columns=["image"])
    assert pictures["image"].null_count == 0
    assert pictures.num_rows == 120


def test_it_is_resumed_with_them(home: Path, elsewhere: Path) -> None:
    run = Path(shutil.copytree(home / "run", "again"))
    coke.pretrain(out=run, resume=True, overrides={"epochs": 3})
    assert Run(run).environment["data"]["n_images"] == 120
    assert Run(run).data == str(home / "photos")


def test_others_are_not_taken_for_them(
    home: Path, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As after the photos went, while a folder of that name is here."""
    run = Path(shutil.copytree(home / "run", "again"))
    environment = Run(run).environment
    environment["data"]["place"] = str(elsewhere / "gone" / "photos")
    Run(run).write_json(Run(run).environment_file, environment)
    assert main(["curate", "again", "--n", "10", "--out", "chosen.parquet"]) == 1
    assert "photos holds 40 images, which are not those of again any more" in capsys.readouterr().err
    shutil.rmtree("photos")
    assert main(["curate", "again", "--n", "10", "--out", "chosen.parquet"]) == 1
    assert "--data says where the images of again lie now" in capsys.readouterr().err
    assert not Path("chosen.parquet").exists()


def test_places_of_data(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    assert absolute("photos") == str(home / "photos")
    assert absolute("CIFAR10:photos") == f"CIFAR10:{home / 'photos'}"
    assert absolute("textures") == "textures"
