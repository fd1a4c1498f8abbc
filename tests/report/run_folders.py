"""Small real run folders, written in the formats of `coke.run`, and a reader of the page they give."""

from __future__ import annotations

import base64
import csv
import gzip
import io
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import torch
from PIL import Image

from coke.images.image_set import ImageSet
from coke.run import Run, atomic
from coke.training.map import write_map

VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}


class Page(HTMLParser):
    """Collects what a test asks about, and fails at the first tag that closes another than the open one."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.texts: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1:] == [tag], f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.texts.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def all(self, tag: str, **attributes: str) -> list[dict[str, str | None]]:
        wanted = {key.rstrip("_"): value for key, value in attributes.items()}
        return [found for name, found in self.tags if name == tag and wanted.items() <= found.items()]


def page_of(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def epoch(number: int, n_epochs: int, n_images: int, counts: list[int], **changed: Any) -> dict[str, Any]:
    heads = [
        {
            "n_clusters": count,
            "used": count,
            "smallest": 2 + number,
            "largest": 40 - number,
            "bound": 0.4 * n_images / count,
            "size_quantiles": [2, 10, 40],
        }
        for count in counts
    ]
    progress = number / n_epochs
    return {
        "kind": "epoch",
        "epoch": number,
        "loss": 2.5 - progress,
        "ln_clusters": sum(math.log(count) for count in counts) / len(counts),
        "learning_rate": 0.1 * progress,
        "heads": heads,
        "churn": 0.9 - 0.5 * progress,
        "label_agreement": 0.1 + 0.5 * progress,
        "prediction_agreement": 0.2 + 0.5 * progress,
        "feature_spread": 0.8,
        "effective_rank": 12.5,
        "data_wait": 0.034,
        "images_per_second": 812.0,
        "seconds": 61.0,
        "verdict": {"state": "learning", "healthy": True, "text": "it learns", "action": "nothing"},
    } | changed


def write_metrics(run: Run, records: list[dict[str, Any]]) -> None:
    with atomic(run.metrics_file) as stream:
        stream.writelines(json.dumps(record) + "\n" for record in records)


def write_assignments(run: Run, images: ImageSet, counts: list[int], seed: int = 0) -> pyarrow.Table:
    random = np.random.default_rng(seed)
    contents = [row.tobytes() for row in images.hashes.numpy()]
    columns: dict[str, Any] = {"key": images.keys, "content": pyarrow.array(contents, pyarrow.binary(16))}
    if images.labels is not None:
        columns["label"] = images.labels.numpy()
    for head, count in enumerate(counts):
        columns[f"cluster_{head}"] = random.integers(0, count, len(images))
        columns[f"score_{head}"] = random.uniform(-1, 1, len(images)).astype(np.float32)
        columns[f"margin_{head}"] = random.uniform(-0.1, 1, len(images)).astype(np.float32)
        columns[f"second_{head}"] = (columns[f"cluster_{head}"] + 1) % count
    table = pyarrow.table(columns)
    pyarrow.parquet.write_table(table, run.assignments)
    return table


def write_plane(run: Run, images: ImageSet, seed: int = 0) -> None:
    """map.parquet, from random unit vectors."""
    vectors = np.random.default_rng(seed).normal(size=(len(images), 8))
    write_map(run.map, vectors, np.zeros(len(images), int), np.eye(1, 8), images)


def scores_of(**shares: float) -> dict[str, Any]:
    more = {
        "bank_images": 4500,
        "query_images": 500,
        "n_classes": 10,
        "clustered": "bank",
        "clustered_images": 4500,
    }
    return {**shares, **more}


def write_whole_run(path: Path, images: ImageSet, counts: list[int], n_epochs: int = 4) -> Run:
    """Everything that a run with labels leaves behind, as far as the report reads it."""
    run = Run(path)
    path.mkdir(parents=True)
    run.write_config(
        {
            "recipe": "textures",
            "data": "textures",
            "backbone": "coke_resnet18_small",
            "epochs": n_epochs,
            "n_clusters": counts,
            "min_size_ratio": 0.4,
            "clustering_epochs": 1,
            "views": [{"size": 24, "count": 1, "clusters": True}],
        }
    )
    environment = {
        "format_version": 1,
        "versions": {"coke": "0.1.0", "torch": "2.11.0"},
        "device": "cpu",
        "data": {"name": images.name, "n_images": len(images), "note": "probes query the test split"},
    }
    run.write_json(run.environment_file, environment)
    records = [epoch(number, n_epochs, len(images), counts) for number in range(n_epochs)]
    knn = [
        {"kind": "knn", "epoch": number, "accuracy": 0.2 + 0.1 * number} for number in range(0, n_epochs, 2)
    ]
    write_metrics(run, [*records, *knn, {"kind": "event", "epoch": 2, "text": "wrote a checkpoint"}])
    verdict = {"state": "learning", "healthy": True, "text": "it learns steadily", "action": "train longer"}
    run.write_json(run.verdict_file, verdict)
    representations = {
        "raw pixels": scores_of(knn=0.251, linear=0.19, accuracy=0.172, nmi=0.05, ari=0.02),
        "untrained": scores_of(knn=0.232, linear=0.384, accuracy=0.203, nmi=0.09, ari=0.04),
        "trained": scores_of(knn=0.428, linear=0.511, accuracy=0.331, nmi=0.27, ari=0.16),
    }
    evaluation = {
        "representations": representations,
        "split": "probes query the test split (500 images)",
        "heads": [{"head": 0, "used": 5, "accuracy": 0.3, "nmi": 0.31, "ari": 0.2}],
    }
    run.write_json(run.evaluation_file, evaluation)
    run.backbone.write_bytes(b"weights")
    write_assignments(run, images, counts)
    write_plane(run, images)
    return run


def photographs(folder: Path, n_images: int, side: int, seed: int = 0) -> ImageSet:
    """Coloured noise as PNG files in a folder, read as any user's folder is."""
    from coke.images import open_data

    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    for index in range(n_images):
        pixels = random.integers(0, 256, (side, side, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:03d}.png")
    return open_data(folder).train


def write_unreadable(run: Run, count: int) -> None:
    with atomic(run.unreadable_file) as stream:
        writer = csv.writer(stream)
        writer.writerow(["key", "reason"])
        writer.writerows([f"broken/{index:02d}.jpg", "truncated, 12 bytes"] for index in range(count))


def pixels_of(uri: str) -> torch.Tensor:
    """The uint8 [3, h, w] pixels of an embedded image."""
    content = base64.b64decode(uri.partition("base64,")[2])
    return torch.from_numpy(np.array(Image.open(io.BytesIO(content)).convert("RGB"))).permute(2, 0, 1)


def unpacked(path: Path, name: str = "data") -> Any:
    """What the page holds packed for its script."""
    found = re.search(rf'<script type="text/plain" id="{name}">([^<]*)</script>', path.read_text("utf-8"))
    assert found
    text = gzip.decompress(base64.b64decode(found[1])).decode()
    return json.loads(text) if name == "data" else text
