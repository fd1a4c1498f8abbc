"""What every test starts from: one seed, one thread, and no deadline where hypothesis draws examples."""

import pytest
import torch
from hypothesis import settings

settings.register_profile("coke", deadline=None, derandomize=True)
settings.load_profile("coke")
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
