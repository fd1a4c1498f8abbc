"""What a view of an image is: data, not a program. One, two and many views are lists of these."""

from __future__ import annotations

from dataclasses import dataclass

from coke.errors import ConfigError


@dataclass(frozen=True)
class View:
    """How one view is made from an image, and whether it is clustered.

    Jitter is the largest relative change of brightness, contrast and saturation, and of hue in turns.
    """

    size: int = 32  # side in px
    crop: tuple[float, float] = (0.2, 1.0)  # of the image's area, smallest and largest share
    ratio: tuple[float, float] = (3 / 4, 4 / 3)  # width / height, drawn log-uniformly
    flip: float = 0.5  # probability of a horizontal flip
    rotation: float = 0.0  # largest angle in degrees, either way; 180 turns freely
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)  # of brightness to hue
    jitter_probability: float = 0.8  # of the jitter as a whole
    gray: float = 0.2  # probability of losing all colour
    blur: float = 0.0  # probability of a Gaussian blur, sigma 0.1 to 2 px at 224 px, in proportion else
    solarise: float = 0.0  # probability of inverting the pixels above one half
    invert: float = 0.0  # probability of inverting all pixels
    clusters: bool = True  # a large view: its projection is clustered, a target for the others
    count: int = 1  # how many such views a step makes

    def __post_init__(self) -> None:
        if self.size < 4:
            raise ConfigError(f"views.size must be at least 4 px, got {self.size}")
        if not 0 < self.crop[0] <= self.crop[1] <= 1:
            raise ConfigError(f"views.crop must be [smallest, largest] share within (0, 1], got {self.crop}")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ConfigError(f"views.ratio must be [smallest, largest] width / height, got {self.ratio}")
        for name in ("flip", "jitter_probability", "gray", "blur", "solarise", "invert"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"views.{name} is a probability, got {getattr(self, name)}")
        if len(self.jitter) != 4 or min(self.jitter) < 0 or self.jitter[3] > 0.5:
            raise ConfigError(
                f"views.jitter is [brightness, contrast, saturation, hue <= 0.5], got {self.jitter}"
            )
        if not 0 <= self.rotation <= 180:
            raise ConfigError(f"views.rotation must lie in 0 ... 180 degrees, got {self.rotation}")
        if self.count < 1:
            raise ConfigError(f"views.count must be at least 1, got {self.count}")
