"""Online constrained k-means."""
