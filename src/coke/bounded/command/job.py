"""What `coke cluster` and `coke assign` are told: data, output and sizes, checked before any work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coke.bounded.command.files import check_out
from coke.bounded.command.size_files import read_sizes
from coke.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class Job:
    """What both verbs are told.

    Attributes:
        data: .npy, .parquet or a folder of them.
        out: parquet, to be written: each row's cluster, distance, margin and second cluster.
        sizes: ``min_size`` and the like, as `ConstrainedKMeans` takes them.
        sizes_file: sizes of each cluster, see `read_sizes`.
        column: of parquet: where the vectors are.
        device: where to compute; of ``"cuda"`` every process takes its own.
        overwrite: replace files where they exist.
        console: where progress goes; None is silent.
    """

    data: Path
    out: Path
    sizes: Mapping[str, Any] = field(default_factory=dict)
    sizes_file: Path | None = None
    column: str | None = None
    device: str | None = None
    overwrite: bool = False
    console: Console | None = None

    def check_files(self, centers: Path | None = None) -> None:
        """Raise `ConfigError` where outputs cannot be written, or would come between the inputs."""
        outputs = [(self.out, ".parquet", "--out")]
        outputs += [] if centers is None else [(centers, ".safetensors", "--centers")]
        for path, suffix, flag in outputs:
            if path.resolve() == self.data.resolve():
                raise ConfigError(f"{flag} {path} is the data itself: name another file")
            check_out(path, suffix, flag, overwrite=self.overwrite)
        if self.data.is_dir() and self.data.resolve() in self.out.resolve().parents:
            raise ConfigError(f"--out {self.out} would be read as data the next time: name another folder")

    def all_sizes(self) -> dict[str, Any]:
        """Sizes as asked for, those of a file among them."""
        asked = {name: value for name, value in self.sizes.items() if value is not None}
        of_file = {} if self.sizes_file is None else read_sizes(self.sizes_file)
        for name in of_file:
            twice = [other for other in (name, f"{name}_ratio") if other in asked]
            if twice:
                raise ConfigError(
                    f"{self.sizes_file} holds {name} of each cluster: leave out {_flag(twice[0])}"
                )
        return {**asked, **of_file}


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
