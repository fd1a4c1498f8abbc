"""What every test starts from: one seed, one thread, and no deadline where hypothesis draws examples."""

import os

import pytest
import torch
from hypothesis import settings

settings.register_profile("coke", deadline=None, derandomize=True)
settings.load_profile("coke")
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that a test starts


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
