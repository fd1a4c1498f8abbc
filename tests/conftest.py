"""What every test starts from: one seed, one thread, and no deadline where hypothesis draws examples."""

import os
import sys
from pathlib import Path

if sys.dont_write_bytecode:  # then every process that a test starts would compile torch anew, for seconds
    sys.dont_write_bytecode = False
    sys.pycache_prefix = str(Path(__file__).parents[1] / ".pytest_cache" / "bytecode")
    os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix
    del os.environ["PYTHONDONTWRITEBYTECODE"]

import pytest
import torch
from hypothesis import settings

settings.register_profile("coke", deadline=None, derandomize=True)
settings.register_profile("nightly", deadline=None, max_examples=10_000)
settings.load_profile("coke")
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that a test starts


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
