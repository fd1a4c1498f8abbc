"""Size-constrained clustering: the online method, its label memory and its measures. Needs no images."""

from coke.clustering.dual_step import auto_dual_lr
from coke.clustering.labels import UNASSIGNED, LabelMemory
from coke.clustering.online import OnlineConstrainedKMeans
from coke.clustering.starts import spread_centers

__all__ = ["UNASSIGNED", "LabelMemory", "OnlineConstrainedKMeans", "auto_dual_lr", "spread_centers"]
