"""What a translation cost, by two clocks."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from kdlab.runtime import cpu_seconds


@dataclass
class Stopwatch:
    """Time spent inside its `with` blocks, summed: `wall_s`, and `cpu_s` over all threads (user plus system)."""

    wall_s: float = 0.0
    cpu_s: float = 0.0
    _begun: tuple[float, float] = field(default=(0.0, 0.0), repr=False)

    def __enter__(self) -> Stopwatch:
        self._begun = (time.perf_counter(), cpu_seconds())
        return self

    def __exit__(self, *exception: object) -> None:
        self.wall_s += time.perf_counter() - self._begun[0]
        self.cpu_s += cpu_seconds() - self._begun[1]


def efficiency(watch: Stopwatch, *, sentences: int, tokens: int) -> dict[str, Any]:
    """Rates by wall clock and by CPU-second; tokens are target tokens, EOS counted."""
    wall_s, cpu_s = max(watch.wall_s, 1e-9), max(watch.cpu_s, 1e-9)
    return {
        "sentences": sentences,
        "tokens": tokens,
        "wall_s": round(watch.wall_s, 3),
        "cpu_s": round(watch.cpu_s, 3),
        "sentences_per_s": round(sentences / wall_s, 3),
        "tokens_per_s": round(tokens / wall_s, 3),
        "sentences_per_cpu_s": round(sentences / cpu_s, 3),
        "tokens_per_cpu_s": round(tokens / cpu_s, 3),
    }
