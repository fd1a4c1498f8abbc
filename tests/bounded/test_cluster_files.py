"""clusters.safetensors, read by other readers than ours; other and damaged files are refused in one line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

import coke
from coke.bounded.files import as_bytes
from coke.errors import DataError

FACTS = {"min_size": 2, "max_size": [3, 4, 9], "gap": 0.25, "inertia": float("inf"), "seed": None}
FLOAT64, INT64 = torch.float64, torch.int64


def heads() -> list[tuple[Tensor, Tensor, Tensor]]:
    """Two, of 3 and of 4 clusters."""
    made = [(torch.randn(k, 2), torch.randn(k, dtype=FLOAT64), torch.arange(k)) for k in (3, 4)]
    return [(centers, duals, counts) for centers, duals, counts in made]


def test_every_head_comes_back(tmp_path: Path) -> None:
    path, written = tmp_path / "clusters.safetensors", heads()
    path.write_bytes(as_bytes(written, "cosine", FACTS))
    for head, (centers, duals, counts) in enumerate(written):
        km = coke.load_clustering(path, head=head)
        assert km.cluster_centers_.dtype.name == "float32"
        assert km.cluster_centers_.tolist() == centers.tolist()
        assert km.duals_.tolist() == duals.tolist()
        assert km.counts_.tolist() == counts.tolist()
        assert (km.metric, km.inertia_, km.n_clusters) == ("cosine", float("inf"), len(centers))
    for head in (2, -1):
        with pytest.raises(DataError, match=rf"safetensors has no head {head}: it has 2, numbered from 0"):
            coke.load_clustering(path, head=head)


def test_as_safetensors_sees_it(tmp_path: Path) -> None:
    path, written = tmp_path / "clusters.safetensors", heads()
    path.write_bytes(as_bytes(written, "cosine", FACTS))
    with safe_open(path, "np") as file:
        names = sorted(file.keys())
        about = json.loads(file.metadata()["coke clustering"])
    assert names == ["centers_0", "centers_1", "counts_0", "counts_1", "duals_0", "duals_1"]
    assert about == {"format_version": 2, "coke_version": coke.__version__, "metric": "cosine", **FACTS}
    for _ in range(5):
        assert as_bytes(written, "cosine", FACTS) == path.read_bytes()


def changed(path: Path, about: Any, **tensors: Tensor) -> Path:
    """The file with other metadata and tensors."""
    whole = {"centers_0": torch.ones(3, 2), "duals_0": torch.zeros(3, dtype=FLOAT64)}
    whole["counts_0"] = torch.ones(3, dtype=INT64)
    known = {"format_version": 2, "metric": "euclidean"}
    text = json.dumps({**known, **about} if isinstance(about, dict) else about)
    kept = {name: values for name, values in {**whole, **tensors}.items() if values.numel()}
    save_file(kept, path, {} if about is None else {"coke clustering": text})
    return path


@pytest.mark.parametrize(
    ("about", "tensors", "expected"),
    [
        (None, {}, "holds no clustering: name a file of `coke cluster` or `coke pretrain`"),
        ([1], {}, "holds no clustering"),
        (3, {}, "holds no clustering"),
        ({"format_version": 3, "coke_version": "9.9"}, {}, "has format 3 (of coke 9.9)"),
        ({"format_version": "1"}, {}, "has format '1'"),
        ({"metric": "manhattan"}, {}, "metric 'manhattan'"),
        ({"metric": ["cosine"]}, {}, "metric ['cosine']"),
        ({}, {"centers_0": torch.empty(0)}, "has no head 0: it has 0"),
        ({}, {"duals_0": torch.empty(0)}, "duals_0 torch.float32 [0]"),
        (
            {},
            {"duals_0": torch.zeros(4, dtype=FLOAT64)},
            "is damaged: it has centers_0 torch.float32 [3, 2], ",
        ),
        ({}, {"duals_0": torch.zeros(3)}, "duals_0 torch.float32 [3]"),
        ({}, {"centers_0": torch.ones(3)}, "is damaged"),
        ({}, {"centers_0": torch.ones(3, 2).bfloat16()}, "centers_0 torch.bfloat16"),
        ({}, {"centers_0": torch.full((3, 2), torch.nan)}, "finite"),
        ({}, {"counts_0": torch.tensor([1, -1, 1])}, "no count negative"),
        ({"inertia": None}, {}, "inertia None"),
    ],
)
def test_other_files_are_refused(
    about: Any, tensors: dict[str, Tensor], expected: str, tmp_path: Path
) -> None:
    path = changed(tmp_path / "other.safetensors", about, **tensors)
    with pytest.raises(DataError) as caught:
        coke.load_clustering(path)
    assert expected in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"no safetensors at all", b"\xff" * 100])
def test_unreadable_files_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    path.write_bytes(content)
    with pytest.raises(DataError, match="cannot be read as safetensors"):
        coke.load_clustering(path)
    with pytest.raises(DataError, match="there is no such file"):
        coke.load_clustering(tmp_path / "nothing.safetensors")


@pytest.mark.parametrize(
    "facts",
    [
        '{"format_version": 2, "metric": "cosine", "inertia": 1%s}' % ("0" * 400),
        "[" * 100_000,
        "9" * 5000,
        '{"a": 1',
    ],
)
def test_facts_that_no_number_or_stack_can_hold(facts: str, tmp_path: Path) -> None:
    from safetensors.torch import save

    head = {
        "centers_0": torch.ones(2, 2),
        "duals_0": torch.zeros(2).double(),
        "counts_0": torch.ones(2).long(),
    }
    (tmp_path / "x").write_bytes(save(head, {"coke clustering": facts}))
    with pytest.raises(DataError, match=r"x (is damaged|cannot be read as safetensors): ") as caught:
        coke.load_clustering(tmp_path / "x")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 800


def test_metadata_that_is_no_json(tmp_path: Path) -> None:
    save_file({"centers_0": torch.ones(3, 2)}, tmp_path / "a.safetensors", {"coke clustering": "{"})
    with pytest.raises(DataError, match="cannot be read"):
        coke.load_clustering(tmp_path / "a.safetensors")


def test_files_of_format_1_are_still_read(tmp_path: Path) -> None:
    """One head, whose tensors had no number."""
    centers, duals, counts = heads()[0]
    about = {"format_version": 1, "coke_version": "0.1.0", "metric": "cosine", "inertia": 3.5}
    path, metadata = tmp_path / "old.safetensors", {"coke clustering": json.dumps(about)}
    save_file({"centers": centers, "duals": duals, "counts": counts}, path, metadata)
    km = coke.load_clustering(path)
    assert km.cluster_centers_.tolist() == centers.tolist()
    assert (km.metric, km.inertia_) == ("cosine", 3.5)
    with pytest.raises(DataError, match="has no head 1: it has 1"):
        coke.load_clustering(path, head=1)


def test_nothing_heavy_is_loaded_for_the_format() -> None:
    code = "import coke.bounded.files, sys; print({'sklearn', 'scipy', 'pyarrow', 'rich'} & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "set()"
