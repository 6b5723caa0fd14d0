"""The process we run in: messages, progress, versions, CPU time; no torch on import.

Everything a user sees goes to standard error, so that standard output stays a command's result.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

Item = TypeVar("Item")

_quiet = False


def be_quiet() -> None:
    """Of several processes that do the same, one speaks: not this one."""
    global _quiet
    _quiet = True


def say(message: str) -> None:
    """Prints one line to standard error, at once, above a progress bar where there is one."""
    if _quiet:
        return
    if "tqdm" in sys.modules:
        sys.modules["tqdm"].tqdm.write(f"kdlab: {message}", file=sys.stderr)
    else:
        print(f"kdlab: {message}", file=sys.stderr, flush=True)


def progress(items: Iterable[Item], *, what: str, total: int | None = None, unit: str = "lines") -> Iterator[Item]:
    """Passes `items` through under a progress bar (a line every 30 s where standard error is no terminal)."""
    with bar(what=what, total=total, unit=unit) as shown:
        for item in items:
            yield item
            shown.update()


def bar(*, what: str, total: int | None, unit: str = "lines", initial: int = 0, smoothing: float = 0.3) -> Any:
    """A tqdm bar on standard error: rate and time left; quiet enough for a log file.

    `smoothing`: weight of the last moments in the rate; 0 takes the mean, e.g. where others add in jumps.
    """
    from tqdm import tqdm

    terminal = sys.stderr.isatty()
    return tqdm(
        desc=what,
        total=total,
        unit=f" {unit}",
        initial=initial,
        file=sys.stderr,
        disable=_quiet,
        leave=False,
        dynamic_ncols=terminal,
        mininterval=0.2 if terminal else 30.0,
        unit_scale=True,
        smoothing=smoothing,
    )


def device(wanted: str) -> str:
    """`cpu` or `cuda`; `auto` takes a GPU where there is one."""
    if wanted != "auto":
        return wanted
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


@contextlib.contextmanager
def stopped_by_sigterm() -> Iterator[None]:
    """Makes SIGTERM a KeyboardInterrupt inside the block, so that what is held is given back at once.

    Only in the main thread; elsewhere nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def num_gpus() -> int:
    """How many GPUs torch finds here."""
    import torch

    return torch.cuda.device_count()


def num_nodes() -> int:
    """On how many nodes this process may start others: those of its SLURM step, or of the job; 1 elsewhere."""
    return int(os.environ.get("SLURM_STEP_NUM_NODES") or os.environ.get("SLURM_JOB_NUM_NODES") or 1)


def start_torch(threads: int) -> None:
    """Limits torch to so many CPU threads, and sets what its kernels and its memory cost there.

    oneDNN keeps 1,024 compiled kernels by default, and a small bf16 model then has 1.5 GB after 300 steps; 512 are
    enough for the shapes that products.py leaves: the same speed in 1.2 GB.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "512")  # read at the first product, not at import
    _keep_memory()
    import torch

    torch.set_num_threads(threads)


def _keep_memory() -> None:
    """Has glibc keep the memory of freed tensors for the next ones; a user's own settings of it stand.

    It gives large blocks back to the system at once, which clears every page again for the next tensor: a sixth of a
    small model's step, and no lower peak.
    """
    if sys.platform != "linux" or {"GLIBC_TUNABLES", *(f"MALLOC_{n}_THRESHOLD_" for n in ("MMAP", "TRIM"))} & {
        *os.environ
    }:
        return
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # another C library has none
    trim, mmap = -1, -3
    # The first to be taken; older ones allow blocks of 32 MiB at most. Either setting ends glibc's own adjustment.
    if mallopt and any(mallopt(mmap, size) for size in (1 << 30, 1 << 25)):
        mallopt(trim, 1 << 30)


def end_with_parent(number: int) -> None:
    """Asks Linux for this signal when the process that started this one ends, however it ends."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, number)  # PR_SET_PDEATHSIG


def cpu_seconds() -> float:
    """CPU time of this process and its finished children so far, user plus system."""
    return sum(os.times()[:4])


def versions() -> dict[str, str]:
    """Versions of the packages that can change a number."""
    names = ("kdlab", "torch", "lightning", "hydra-core", "sacrebleu", "sentencepiece", "datasets")
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """The git commit of the kdlab sources, `+` behind it when they were changed; None outside a checkout."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None

    def git(*args: str) -> str:
        return subprocess.run(["git", "-C", str(root), *args], capture_output=True, text=True, check=False).stdout

    head = git("rev-parse", "--short=12", "HEAD").strip()
    if not head:
        return None
    return head + ("+" if git("status", "--porcelain", "--untracked-files=no", "--", "kdlab", "conf").strip() else "")


def peak_memory_mib() -> float:
    """The most memory so far in MiB: of the GPU where torch uses one, else of this process."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return float(torch.cuda.max_memory_allocated()) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)  # bytes there, KiB elsewhere
