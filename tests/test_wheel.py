"""The package that people install: built as a wheel, unpacked elsewhere, and run from there."""

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from email.parser import Parser
from pathlib import Path

import pytest

import coke

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "coke"


def uv() -> str:
    """The uv that runs the tests (it names itself in UV), or one on the path."""
    found = os.environ.get("UV") or shutil.which("uv")
    if not found:
        pytest.skip("uv is not installed: pip install uv")
    return found


def run(command: Sequence[str | Path], **environment: str) -> str:
    """What a command prints; a failure shows what it said."""
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        list(map(str, command)),
        capture_output=True,
        text=True,
        check=False,
        env=kept | environment,
        cwd=os.sep,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    run([uv(), "build", "--wheel", "--out-dir", out, ROOT])
    (built,) = out.glob("*.whl")
    return built


def test_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata_name = next(name for name in names if name.endswith("dist-info/METADATA"))
        metadata = Parser().parsestr(archive.read(metadata_name).decode())
    ours = {name for name in names if ".dist-info/" not in name}
    written = [path for path in SOURCE.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert ours == {path.relative_to(SOURCE.parent).as_posix() for path in written}
    assert {"coke/py.typed", "coke/training/recipes.py", "coke/__main__.py"} <= ours
    assert any(name.endswith("dist-info/licenses/LICENSE") for name in names)
    assert metadata["Name"] == "coke-ssl"
    assert metadata["Version"] == coke.__version__
    assert metadata["License-Expression"] == "Apache-2.0"


def test_installed_wheel_runs(wheel: Path, tmp_path: Path) -> None:
    """From the installed files, which the module's place proves: not from the source beside the tests."""
    target = tmp_path / "installed"
    python = ["--python", sys.executable]
    run([uv(), "pip", "install", "--quiet", "--no-deps", "--offline", *python, "--target", target, wheel])
    here = {"PYTHONPATH": str(target)}
    assert run([sys.executable, "-m", "coke", "--version"], **here).strip() == f"coke {coke.__version__}"
    place = run([sys.executable, "-c", "import coke; print(coke.__file__)"], **here).strip()
    assert Path(place).is_relative_to(target)
    assert "textures" in run([sys.executable, "-m", "coke", "recipes"], **here)
    script = target / "bin" / "coke"
    assert run([sys.executable, script, "--version"], **here).strip() == f"coke {coke.__version__}"
