"""Features as those of a network: unit vectors, around a few directions that move from epoch to epoch."""

import torch
from torch.nn.functional import normalize


def unit(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(*shape, generator=generator), dim=-1)


def stream(n_images, dim, n_views, epoch):
    """Unit features around a few directions, moving from epoch to epoch as those of a network do."""
    base = unit(5, dim, seed=1)[torch.arange(n_images) % 5 // 2]  # unequal groups
    views = [normalize(base + 0.7 * unit(n_images, dim, seed=100 * epoch + view)) for view in range(n_views)]
    order = torch.randperm(n_images, generator=torch.Generator().manual_seed(epoch))
    return torch.stack(views).mean(dim=0)[order]
