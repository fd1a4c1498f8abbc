"""The method of the paper: online k-means with a minimum cluster size, and the labels that images keep. torch only."""

from coke.method.dual_step import auto_dual_lr
from coke.method.labels import UNASSIGNED, LabelMemory
from coke.method.online import OnlineConstrainedKMeans

__all__ = ["UNASSIGNED", "LabelMemory", "OnlineConstrainedKMeans", "auto_dual_lr"]
