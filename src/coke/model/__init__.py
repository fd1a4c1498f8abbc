"""A trained model for use: its files, and what `coke.load` makes of them. Needs neither a recipe nor a checkpoint."""

from coke.model.files import Preprocessing, load, write_backbone, write_projector
from coke.model.model import Model, Prediction

__all__ = ["Model", "Prediction", "Preprocessing", "load", "write_backbone", "write_projector"]
