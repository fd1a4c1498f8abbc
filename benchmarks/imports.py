"""What starting costs: the clustering half and ``coke --help``, beside ``import torch`` and bare Python.

Each candidate is a fresh process; what it loaded is asked of another process of the same kind. Neither may
load Lightning (which sets environment variables), torchvision or timm.

    python benchmarks/imports.py
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable

import _common as common

CANDIDATES = {
    "bare python": "pass",
    "import coke": "import coke",
    "coke --help": "import sys\ntry:\n  from coke.cli import main; main(['--help'])\nexcept SystemExit: pass",
    "import torch": "import torch",
    "from coke import OnlineConstrainedKMeans": "from coke import OnlineConstrainedKMeans",
}
FORBIDDEN = ("lightning_fabric", "torchvision", "timm")
ASKED = ("torch", "numpy", *FORBIDDEN, "sklearn", "scipy", "tensorboard", "pyarrow", "PIL", "rich", "yaml")


def run(code: str) -> str:
    """Standard output of a fresh interpreter."""
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def loaded(code: str) -> list[str]:
    """Which of `ASKED` a fresh interpreter has loaded after the code."""
    ask = f"\nimport json, sys; print('\\n' + json.dumps([n for n in {ASKED!r} if n in sys.modules]))"
    return list(json.loads(run(code + ask).splitlines()[-1]))


def runner(code: str) -> Callable[[], str]:
    """A candidate for `interleaved`."""
    return lambda: run(code)


def main() -> None:
    """Measure, print, write."""
    options = common.arguments(__doc__).parse_args()
    pairs = options.pairs or (1 if options.quick else 50)
    where = common.environment()
    common.print_environment(where)
    times = common.interleaved(
        {name: runner(code) for name, code in CANDIDATES.items()},
        pairs=pairs,
        warmup=0 if options.quick else 1,
    )
    summary = common.summarise(times, "import torch")
    common.print_summary("starting a process; ratios to import torch", summary)
    print("\nloaded")
    width = max(map(len, CANDIDATES))
    for name, code in CANDIDATES.items():
        summary[name]["loaded"] = loaded(code)
        bad = [module for module in FORBIDDEN if module in summary[name]["loaded"]]
        summary[name]["met"] = not bad
        verdict = f"MISSED: {', '.join(bad)} must not be loaded" if bad else ""
        print(f"  {name:{width}}  {', '.join(summary[name]['loaded']) or '-'}  {verdict}")
    common.write_result("imports", options, {"environment": where, "results": summary})


if __name__ == "__main__":
    main()
