"""What a representation is worth, judged with labels it never saw: k-NN, linear probes, clusters.

Features come from `extract` (a backbone) or `raw_pixels`; `adapt_batch_norm` makes an untrained network a
fair opponent; `evaluate_representations` puts any number of them side by side and `table` prints that.
"""

from coke.evaluation.augmented import augmented_linear_probe
from coke.evaluation.clusters import cluster_scores, head_scores
from coke.evaluation.evaluate import evaluate_representations, table
from coke.evaluation.features import adapt_batch_norm, extract, raw_pixels, to_device
from coke.evaluation.probes import knn_accuracy, linear_probe

__all__ = [
    "adapt_batch_norm",
    "augmented_linear_probe",
    "cluster_scores",
    "evaluate_representations",
    "extract",
    "head_scores",
    "knn_accuracy",
    "linear_probe",
    "raw_pixels",
    "table",
    "to_device",
]
