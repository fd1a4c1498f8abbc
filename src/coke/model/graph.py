"""A model as an ONNX graph, by torch's exporter, checked in onnxruntime.

    image       float32 [batch, 3, S, S]: red, green, blue in 0 ... 1; normalisation is inside
    features    float32 [batch, F]
    projection  float32 [batch, D], unit vectors           \\
    cluster_h   int64 [batch], the nearest center of head h  where clusters are asked for
    score_h     float32 [batch], the cosine to it          /

The file's metadata say how an image becomes that input: size, crop_pct, interpolation (and mean, std of inside).
"""

from __future__ import annotations

import importlib.util
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from coke import __version__
from coke.errors import ConfigError, DataError
from coke.method.network import pool
from coke.model.model import Model
from coke.model.parity import pixels, within

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_BATCHES = (1, 2, 5)
_LIMIT = 1e-4


def check_packages() -> None:
    """Raise `ConfigError` where the extra is not installed."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f'--to onnx needs {", ".join(missing)}: pip install "coke-ssl[onnx]"')


class Graph(nn.Module):
    """What the graph computes, in torch. heads: whose clusters it gives; none: features alone."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: Model, heads: Sequence[int] = ()) -> None:
        super().__init__()
        seen = model.preprocessing
        self.backbone, self.projector = model.backbone, model.projector if heads else None
        self.register_buffer("mean", torch.tensor(seen.mean)[:, None, None])
        self.register_buffer("std", torch.tensor(seen.std)[:, None, None])
        centers = [torch.from_numpy(model.heads[head].cluster_centers_).float() for head in heads]
        self.centers = nn.ParameterList([nn.Parameter(normalize(each), False) for each in centers])

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """[B, 3, S, S] in 0 ... 1 -> features, and with heads projection, and for each cluster and score."""
        features = pool(self.backbone((image - self.mean) / self.std))
        if self.projector is None:
            return (features,)
        projection = normalize(self.projector(features))
        found = [projection.matmul(centers.t()).max(dim=1) for centers in self.centers]
        return (features, projection, *(each for best in found for each in (best.indices, best.values)))


def write_graph(model: Model, path: Path, heads: Sequence[int] = ()) -> str:
    """Write one file, and say how it was checked.

    Raises:
        ConfigError: a network that torch cannot export. DataError: a graph that does not compute the same.
    """
    names = ["features"]
    if heads:
        names += ["projection", *(f"{what}_{head}" for head in heads for what in ("cluster", "score"))]
    seen = model.preprocessing
    graph, example = Graph(model, heads).eval(), torch.zeros(2, 3, seen.size, seen.size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own insides
        try:
            program: Any = torch.onnx.export(
                graph,
                (example,),
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                input_names=["image"],
                output_names=names,
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            why = str(error.__cause__ or error).strip().splitlines()[0]
            raise ConfigError(f"torch finds no graph for {model.name}: {why}") from error
    stated = {"input": "RGB in 0 ... 1, normalised inside", "size": str(seen.size)}
    stated |= {key: json.dumps(value) for key, value in seen.as_timm().items() if key != "input_size"}
    program.model.metadata_props.update(stated, architecture=model.name, coke_version=__version__)
    program.save(path, external_data=False)
    return _checked(model, path, heads, names)


def _checked(model: Model, path: Path, heads: Sequence[int], names: list[str]) -> str:
    import onnxruntime

    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    images, apart = pixels(model), 0.0
    for n_images in _BATCHES:
        batch = images[:n_images]
        given = {"image": (batch.float() / 255).numpy()}
        theirs = dict(zip(names, map(torch.from_numpy, session.run(names, given)), strict=True))
        ours = {"features": model.features(batch)}
        if heads:
            ours["projection"] = model.features(batch, "projection")
        for head in heads:
            own, found = model.predict(ours["projection"], head), theirs[f"cluster_{head}"]
            ours[f"score_{head}"] = own.score
            if not bool(((found == own.cluster) | (own.margin < 2 * _LIMIT)).all()):
                raise DataError(f"the graph's cluster_{head} is not coke's own: nothing was written")
        compared = [within(_LIMIT, theirs[name], ours[name], f"the graph's {name}") for name in ours]
        apart = max(apart, *compared)
    what = f"{names[0]}{', projection and clusters' if heads else ''}"
    return f"{what} in onnxruntime, batches of 1, 2 and 5: {apart:.1e} apart at most"
