"""The method of the paper: online k-means with a minimum cluster size, and the labels that images keep. torch only."""

from coke.method.dual_step import auto_dual_lr
from coke.method.kmeans import OnlineConstrainedKMeans
from coke.method.labels import UNASSIGNED, LabelMemory

__all__ = ["UNASSIGNED", "LabelMemory", "OnlineConstrainedKMeans", "auto_dual_lr"]
