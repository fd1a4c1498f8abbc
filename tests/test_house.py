"""The house stands as it is meant to: who imports whom, what an import costs, what the public names are."""

import ast
import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import coke

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "coke"
MODULES = sorted(SOURCE.rglob("*.py"))

LOW = {"errors", "atomic", "distributed", "interrupt", "memory", "output", "progress", "reading", "schemas"}
MAY_IMPORT = {
    "errors": set(),
    "atomic": set(),
    "output": {"errors"},
    "interrupt": set(),
    "progress": {"errors"},
    "memory": {"errors"},
    "reading": {"errors", "memory"},
    "distributed": {"errors"},
    "schemas": {"errors"},
    "backbones": {"errors"},
    "vectors": LOW,
    "method": {"errors"},
    "bounded": LOW | {"vectors"},
    "images": LOW,
    "run": LOW,
    "model": LOW | {"backbones", "bounded", "method", "images", "evaluation", "vectors", "run"},
    "evaluation": LOW | {"images", "run"},
    "explore": LOW | {"bounded", "images", "model", "run", "vectors"},
    "curation": LOW | {"bounded", "explore", "vectors", "images", "model", "run"},
    "report": LOW | {"images", "run", "explore"},
    "training": LOW | {"backbones", "bounded", "method", "images", "run", "evaluation", "model", "explore"},
    "api": LOW | {"backbones", "method", "images", "run", "evaluation", "model", "report", "training"},
    "verbs": set(),
    "cli": LOW | {"api", "bounded", "curation", "explore", "model", "training", "verbs"},
    "__main__": {"cli"},
}
"""Part of coke -> parts that it may import; every part may also read the package's own `__version__`."""

HEAVY = (
    "lightning_fabric",
    "torchvision",
    "timm",
    "sklearn",
    "scipy",
    "tensorboard",
    "matplotlib",
    "plotly",
    "jinja2",
    "rich",
    "pydantic",
)


def name_of(path: Path) -> str:
    """``src/coke/images/open.py`` -> ``coke.images.open``."""
    parts = list(path.relative_to(SOURCE.parent).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(tree: ast.AST, module: str, is_package: bool) -> set[str]:
    """Dotted names that a module's import statements reach, wherever they stand, relative ones resolved."""
    package = module.split(".") if is_package else module.split(".")[:-1]
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            found |= {f"{stem}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and "import_module" in ast.dump(node.func):
            found |= {
                word.value
                for word in node.args
                if isinstance(word, ast.Constant) and isinstance(word.value, str)
            }
    return found


def parts_reached(names: set[str]) -> set[str]:
    """The parts of coke among dotted names: ``coke.images.open.open_data`` -> ``images``."""
    inside = {name.split(".")[1] for name in names if name.startswith("coke.")}
    return inside - {"__version__"}


def at_run_time(tree: ast.Module) -> ast.Module:
    """Without what only type checkers read."""

    class Cut(ast.NodeTransformer):
        def visit_If(self, node: ast.If) -> ast.AST | None:
            return None if "TYPE_CHECKING" in ast.dump(node.test) else self.generic_visit(node)

    return Cut().visit(tree)


def at_import(tree: ast.Module) -> ast.Module:
    """What runs when the module is imported: also without the bodies of functions."""

    class Cut(ast.NodeTransformer):
        def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
            return None

    return Cut().visit(at_run_time(tree))


def python(code: str) -> str:
    """What a fresh interpreter prints."""
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=ROOT, env=os.environ
    ).stdout


def test_imports_are_resolved() -> None:
    source = "import coke.run\ndef f():\n    from ..images import open\n    from . import views\nfrom coke import cli"
    found = imports(ast.parse(source), "coke.training.config", is_package=False)
    assert found == {"coke.run", "coke.images.open", "coke.training.views", "coke.cli"}
    assert parts_reached(found) == {"run", "images", "training", "cli"}
    by_name = ast.parse("importlib.import_module('coke.api')")
    assert imports(by_name, "coke.run", is_package=False) == {"coke.api"}
    assert imports(ast.parse("from .cli import main"), "coke", is_package=True) == {"coke.cli.main"}
    typing_only = "import a\nif TYPE_CHECKING:\n    import b\ndef f():\n    import d"
    assert imports(at_run_time(ast.parse(typing_only)), "coke", is_package=True) == {"a", "d"}
    assert imports(at_import(ast.parse(typing_only)), "coke", is_package=True) == {"a"}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_downwards(path: Path) -> None:
    module = name_of(path)
    if module == "coke":
        return check_that_the_package_is_lazy(path)
    part = module.split(".")[1]
    assert part in MAY_IMPORT, f"{part} has no place in the house yet: give it one in MAY_IMPORT"
    reached = parts_reached(imports(ast.parse(path.read_text()), module, path.name == "__init__.py"))
    assert reached - {part} <= MAY_IMPORT[part], f"{module} imports upwards or sideways"


def check_that_the_package_is_lazy(path: Path) -> None:
    reached = imports(at_import(ast.parse(path.read_text())), "coke", is_package=True)
    assert not parts_reached(reached), "names load on first use"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_heavy_packages_are_imported_where_they_are_used(path: Path) -> None:
    def packages(tree: ast.Module) -> set[str]:
        return {name.split(".")[0] for name in imports(tree, name_of(path), path.name == "__init__.py")}

    if name_of(path) not in ("coke.training.devices"):
        assert "lightning_fabric" not in packages(at_run_time(ast.parse(path.read_text())))
    if name_of(path) != "coke.backbones":  # its purpose is to register with timm
        assert not packages(at_import(ast.parse(path.read_text()))) & {"torchvision", "timm"}


@pytest.mark.parametrize(
    "code",
    [
        "import contextlib, io, coke.cli\n"
        "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()): coke.cli.main(['--help'])",
        "from coke import OnlineConstrainedKMeans, LabelMemory, auto_dual_lr, Run, CokeError",
    ],
    ids=["help", "clustering"],
)
def test_help_and_clustering_load_nothing_heavy(code: str) -> None:
    show = f"\nimport sys; print([name for name in {HEAVY} if name in sys.modules])"
    assert python(code + show).strip() == "[]"


def test_size_constrained_clustering_needs_no_images() -> None:
    """Fit, save and read: none of what the other half is made of."""
    code = """
import numpy
from coke import ConstrainedKMeans, assign_balanced, check_sizes
ConstrainedKMeans(2, min_size=1, random_state=0).fit(numpy.eye(4))
import coke.verbs, coke.bounded.command
import sys; print([name for name in ("lightning_fabric", "torchvision", "timm", "PIL", "tensorboard")
                   if name in sys.modules])
"""
    assert python(code).strip() == "[]"


def test_help_does_not_even_load_torch() -> None:
    assert python("import coke.cli, sys; coke.cli.parser(); print('torch' in sys.modules)").strip() == "False"


def test_importing_changes_nothing_around_it() -> None:
    """Environment, logging and random states, the latter of Python, numpy and torch."""
    code = """
import json, logging, os, random, numpy, torch
def state():
    loggers = {name: (log.level, len(log.handlers)) for name, log in logging.root.manager.loggerDict.items()
               if isinstance(log, logging.Logger) and (log.level or log.handlers)}
    return {
        "environment": dict(os.environ),
        "logging": [logging.root.level, len(logging.root.handlers), logging.root.manager.disable, loggers],
        "random": [repr(random.getstate()), repr(numpy.random.get_state()), torch.get_rng_state().tolist()],
        "threads": torch.get_num_threads(),
        "default type": str(torch.get_default_dtype()),
    }
before = state()
import coke, coke.images, coke.evaluation, coke.report
from coke import CokeError, LabelMemory, OnlineConstrainedKMeans, Run, auto_dual_lr
after = state()
print(json.dumps([key for key in before if json.dumps(before[key]) != json.dumps(after[key])]))
"""
    assert json.loads(python(code)) == []


@pytest.mark.parametrize("names", ["timm, coke.backbones", "coke.backbones, timm"])
def test_timm_knows_coke_names_in_whatever_order(names: str) -> None:
    code = f"import {names}; print('coke_resnet18_small' in timm.list_models('coke_*'))"
    assert python(code).strip() == "True"


def test_importing_coke_hooks_into_no_imports() -> None:
    code = "import sys; before = [*sys.meta_path]; import coke, coke.api; print(sys.meta_path == before)"
    assert python(code).strip() == "True"


def test_public_names_are_there_and_documented() -> None:
    assert list(coke.__all__) == sorted(coke.__all__)
    assert set(coke.__all__) <= set(dir(coke))
    for name in coke.__all__:
        value = getattr(coke, name)
        assert value.__doc__, f"coke.{name} has no docstring"
        assert value.__module__.startswith("coke.")
    with pytest.raises(AttributeError, match="no attribute 'pretrian'"):
        coke.pretrian  # noqa: B018 the access is the test


@pytest.mark.parametrize("name", sorted({"coke", *map(name_of, MODULES)} - {"coke.__main__"}))
def test_every_module_says_what_it_is(name: str) -> None:
    assert (importlib.import_module(name).__doc__ or "").strip()


def test_every_folder_of_the_package_is_a_package() -> None:
    folders = {path.parent for path in MODULES}
    assert [
        str(folder.relative_to(ROOT)) for folder in folders if not (folder / "__init__.py").exists()
    ] == []


def test_product_files_name_no_machine() -> None:
    """No path of one machine, no data that only one machine has, no package registry's host."""
    machine = re.compile(r"(?<![\w.~}/-])/(work|farm|home|Users)/[\w.-]+")
    registry = re.compile(
        r"https?://\S*/(simple|packages)(/|\b)|(--|UV_|PIP_)(extra[-_])?index[-_]?url", re.I
    )
    files = [path for path in SOURCE.rglob("*") if path.suffix in (".py", ".yaml", ".html", ".css", ".js")]
    files += [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / ".ci" / "run", ROOT / "pyproject.toml"]
    files += [ROOT / "mkdocs.yml", ROOT / "docs" / "hooks.py"]
    files += [*(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.py")]
    shared = ".." + "/shared"
    found = []
    for path in files:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if shared in line or machine.search(line) or registry.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert found == []


def test_lock_file_is_ignored() -> None:
    """It names the host that packages came from, which differs between machines."""
    ignored = (ROOT / ".gitignore").read_text().split()
    assert {"uv.lock", "runs/"} <= set(ignored)


def test_where_to_change_is_where_it_stands() -> None:
    """CONTRIBUTING's table: the file is there, and the name is defined in it."""
    section = (ROOT / "CONTRIBUTING.md").read_text().split("## Where would you change")[1].split("\n## ")[0]
    rows = re.findall(r"^\| .* \| `([\w/]+\.py)` \| `(\w+)` \|$", section, re.M)
    assert len(rows) >= 10
    for file, name in rows:
        tree = ast.parse((SOURCE / file).read_text())
        defined = {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef | ast.FunctionDef)}
        defined |= {
            node.id
            for node in ast.walk(tree)
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
        }
        assert name in defined, f"{file} does not define {name}"
    for file in re.findall(r"`([a-z_/]+\.py)`", section.split("To follow one step")[1]):
        assert (SOURCE / file).is_file() or (SOURCE / "bounded" / file).is_file(), file
