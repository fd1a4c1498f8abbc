"""The same threads for every library, without what steers one of them; and which kernels they then run.

Variables that choose a BLAS kernel or its blocking change what a peer can do, and act only at its start: so a
process that has them starts itself anew without.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

import _common as common

STEERING = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "OPENBLAS_NUM_THREADS", "OPENBLAS_DEFAULT_NUM_THREADS")
STEERING += ("GOTO_NUM_THREADS", "BLIS_NUM_THREADS", "MKL_NUM_THREADS", "MKL_DYNAMIC", "MKL_DEBUG_CPU_TYPE")
STEERING += (
    "MKL_ENABLE_INSTRUCTIONS",
    "MKL_CBWR",
    "ATEN_CPU_CAPABILITY",
    "FAISS_OPT_LEVEL",
    "OMP_WAIT_POLICY",
)
STEERING += (
    "OMP_DYNAMIC",
    "OMP_PROC_BIND",
    "OMP_PLACES",
    "OMP_THREAD_LIMIT",
    "GOMP_SPINCOUNT",
    "GOMP_CPU_AFFINITY",
)
PEERS = ("faiss-cpu", "k-means-constrained", "threadpoolctl")
SHAPE = (4096, 128, 1000)  # b, D, K of the product that is timed in every BLAS


def neutral(environ: Mapping[str, str], threads: int) -> dict[str, str]:
    """Environment variables without `STEERING`, and with the number of threads.

    >>> neutral({"HOME": "/", "OPENBLAS_CORETYPE": "Haswell", "OMP_NUM_THREADS": "1"}, 2)
    {'HOME': '/', 'OMP_NUM_THREADS': '2'}
    """
    kept = {name: value for name, value in environ.items() if name not in STEERING}
    return kept | {"OMP_NUM_THREADS": str(threads)}


def start_neutral(threads: int) -> None:
    """Start this process anew with `neutral` variables, unless it has them; call before any work."""
    wanted = neutral(os.environ, threads)
    if wanted != dict(os.environ):
        changed = sorted(name for name in {*wanted, *os.environ} if wanted.get(name) != os.environ.get(name))
        print(f"starting anew, with {', '.join(changed)} neutral", flush=True)
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], wanted)


def set_threads(threads: int) -> None:
    """Let torch, every OpenMP and every BLAS that is loaded, and faiss where it is installed, use so many."""
    import sklearn.cluster  # noqa: F401  # loads its OpenMP, which threadpoolctl then finds
    import threadpoolctl
    import torch

    torch.set_num_threads(threads)
    if importlib.util.find_spec("faiss") is not None:
        import faiss

        faiss.omp_set_num_threads(threads)
    threadpoolctl.threadpool_limits(threads)


def environment(threads: int, prefix: str) -> dict[str, Any]:
    """Set the threads; the environment with kernels and peers, printed. prefix: of the command."""
    set_threads(threads)
    common.PACKAGES += tuple(name for name in PEERS if name not in common.PACKAGES)
    found = common.environment()
    found["command"] = prefix + found["command"]
    found["kernels"] = kernels()
    common.print_environment(found)
    for library, words in found["kernels"].items():
        print(f"  {library}: {words}", flush=True)
    return found


def kernels() -> dict[str, str]:
    """Which kernels each library runs, with its threads and the GFLOP/s of one product of `SHAPE`."""
    import threadpoolctl
    import torch

    b, d, k = SHAPE
    rows, columns = torch.randn(b, d), torch.randn(d, k)
    out = torch.empty(b, k)
    speed = _speed(lambda: torch.mm(rows, columns, out=out))
    found = {
        "torch": f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads, {speed}"
    }
    for pool in threadpoolctl.threadpool_info():
        owner = _owner(pool["filepath"])
        if pool["user_api"] != "blas":
            continue
        words = f"{pool['internal_api']} {pool['version']}, {pool.get('architecture')}, {pool['num_threads']} threads"
        call = _numpys() if owner == "numpy" else _sgemm(pool["filepath"])
        if call is not None:
            words += f", {_speed(call)}"
        found[owner] = words
    if importlib.util.find_spec("faiss") is not None:
        import faiss

        found["faiss itself"] = (
            f"{faiss.get_compile_options().strip()}, {faiss.omp_get_max_threads()} threads"
        )
    return found


def _owner(path: str) -> str:
    """The package that brings a library: ``.../numpy.libs/libx.so`` -> ``numpy``."""
    parts = path.split("/")
    return next((part.removesuffix(".libs") for part in parts if part.endswith(".libs")), parts[-1])


def _speed(call: Any, repetitions: int = 7) -> str:
    call()
    least = min(_seconds(call) for _ in range(repetitions))
    return f"{2 * np.prod(SHAPE, dtype=np.float64) / least / 1e9:.0f} GFLOP/s"


def _seconds(call: Any) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _numpys() -> Any:
    rows, columns, out = _operands()
    return lambda: np.matmul(rows, columns.T, out=out)


def _operands() -> tuple[Any, Any, Any]:
    b, d, k = SHAPE
    random = np.random.default_rng(0)
    rows, columns = (random.standard_normal(shape, dtype=np.float32) for shape in ((b, d), (k, d)))
    return rows, columns, np.empty((b, k), dtype=np.float32)


def _sgemm(path: str) -> Any:
    """The same product by a library's own sgemm (Fortran's, 32-bit sizes); None where it has none by that name."""
    library = ctypes.CDLL(path)
    name = next((name for name in ("sgemm_", "scipy_sgemm_") if hasattr(library, name)), None)
    if name is None:
        return None
    b, d, k = SHAPE
    rows, columns, out = _operands()
    sizes = [ctypes.c_int(size) for size in (k, b, d)]
    one, zero = ctypes.c_float(1), ctypes.c_float(0)
    function = getattr(library, name)

    def call() -> None:  # out.t() = columns rows.t(), as Fortran sees them: [k, b] = [d, k].t() [d, b]
        m, n, inner = map(ctypes.byref, sizes)
        function(
            ctypes.c_char_p(b"T"), ctypes.c_char_p(b"N"), m, n, inner, ctypes.byref(one),
            columns.ctypes.data_as(ctypes.c_void_p), inner, rows.ctypes.data_as(ctypes.c_void_p), inner,
            ctypes.byref(zero), out.ctypes.data_as(ctypes.c_void_p), m,
        )  # fmt: skip

    call()
    assert np.allclose(out[:8], rows[:8] @ columns.T, atol=1e-3)
    return call
