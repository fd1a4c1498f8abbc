"""Learning from unlabelled images: configuration and recipes, views, network, objective, and the loop."""
