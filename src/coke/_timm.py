"""Makes ``import coke`` enough for timm to know ``coke_*`` names, without importing timm for those who do not.

timm has no entry points for other packages' models: they must be registered in the process that asks for
them. So coke's are registered right after timm is imported, whether that was before or comes later.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


class _AfterTimm(MetaPathFinder):
    """Finds timm as anyone would, and has coke's models registered once it is loaded."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != "timm":
            return None
        sys.meta_path.remove(self)
        try:
            spec = importlib.util.find_spec(name)
        finally:  # somebody may only have asked whether there is a timm
            sys.meta_path.insert(0, self)
        if spec is not None and spec.loader is not None:
            spec.loader = _Registering(spec.loader, self)
        return spec


class _Registering(Loader):
    def __init__(self, loader: Loader, finder: _AfterTimm) -> None:
        self.loader, self.finder = loader, finder

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self.loader  # what others ask for timm's source and files
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        self.loader.exec_module(module)
        sys.meta_path.remove(self.finder)
        importlib.import_module("coke.backbones")


def register() -> None:
    """Register coke's models with timm, now or as soon as it is imported."""
    if "timm" in sys.modules:
        importlib.import_module("coke.backbones")
    else:
        sys.meta_path.insert(0, _AfterTimm())
