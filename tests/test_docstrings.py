"""Every example in a docstring of the product does what it says."""

import doctest
import importlib
import pkgutil
import random
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

import coke

MODULES = sorted(
    {module.name for module in pkgutil.walk_packages(coke.__path__, "coke.")} - {"coke.__main__"}
)
SOURCE = Path(coke.__file__).parent


def examples(name: str) -> list[doctest.DocTest]:
    module = importlib.import_module(name)
    return [test for test in doctest.DocTestFinder(exclude_empty=True).find(module, name) if test.examples]


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder of their own, from a known seed, each docstring by itself."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    runner = doctest.DocTestRunner()
    report: list[str] = []
    for test in examples(name):
        random.seed(0), np.random.seed(0), torch.manual_seed(0)  # noqa: NPY002 what an example may draw from
        runner.run(test, out=report.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(report)


def test_every_example_was_found() -> None:
    """Modules are walked, not listed: a folder that the walk misses would pass unseen."""
    files = [path for path in SOURCE.rglob("*.py") if ">>> " in path.read_text()]
    written = {".".join(["coke", *path.relative_to(SOURCE).with_suffix("").parts]) for path in files}
    found = {name for name in MODULES if examples(name)}
    assert {name.removesuffix(".__init__") for name in written} == found
