"""Training in bf16 when every step has another number of tokens, as real ones do: with rows in whole blocks
(kdlab/products.py) against one kernel for every number of rows.

bench_kd_step.py repeats one batch, whose kernels are compiled once; here every step is new. Student wide 1x1 at an
eighth of the deck's width, vocabulary 4,000, 1,024 target tokens a step. One-thread processes in turn; CPU time of the
steps after WARM. Prints a table and exits with 1 where the median ratio is below AT_LEAST.

    python tests/bench_changing_lengths.py --rounds 3
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from itertools import islice
from statistics import median

V, WARM, STEPS = 4000, 50, 150
AT_LEAST = 1.25


def contestant(block: int) -> dict[str, float]:
    """CPU-milliseconds a step, and peak RSS in MiB, with rows rounded up to multiples of `block`."""
    import bench_speed
    import torch

    from kdlab import products, runtime
    from kdlab.data.batching import StepStream
    from kdlab.models.init import random_init
    from kdlab.models.transformer import Transformer, TransformerConfig
    from kdlab.objectives.objective import Objective
    from kdlab.objectives.reduce import reduce
    from kdlab.types import Side

    products.BLOCK = block
    runtime.start_torch(1)
    bench_speed.V = V
    source = bench_speed.rows(20_000)
    sizes = {"tokens_per_step": 1024, "microbatch_tokens": 8192, "src_pad_id": V - 1, "tgt_pad_id": V - 1}
    student = Transformer(TransformerConfig(V, V, 1, 1, 128, 512, 8, dropout=0.1, norm="pre"))
    random_init(student, 1)
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-4, fused=True)
    objective, begun = Objective(bench_speed.NLL), 0.0
    for number, (_, step) in enumerate(islice(StepStream(source, 1, **sizes), WARM + STEPS)):
        if number == WARM:
            begun = time.process_time()
        scales = objective.scales(objective.units(step))
        for batch in step:
            with torch.autocast("cpu", torch.bfloat16):
                targets = batch.targets
                out = student(batch.src_BS, batch.src_mask_BS, targets.tgt_in_RT, targets.source_R, targets.mask_RT)
                side = Side(out.decoder_ND, student.head())
                reduce(objective.terms, scales, targets, side, None, chunk_size=512).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return {"cpu_ms": 1000 * (time.process_time() - begun) / STEPS, "rss_mib": runtime.peak_memory_mib()}


def run(block: int) -> dict[str, float]:
    """What one process reports."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--contestant", str(block)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Prints one line a way, and the ratio; with --contestant, one side of it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--contestant", type=int, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.contestant:
        print(json.dumps(contestant(chosen.contestant)))
        return
    from kdlab.products import BLOCK

    ways = {f"blocks of {BLOCK} rows": BLOCK, "every number of rows": 1}
    rounds = [{name: run(block) for name, block in ways.items()} for _ in range(chosen.rounds)]
    for name in ways:
        spent, memory = (median(one[name][key] for one in rounds) for key in ("cpu_ms", "rss_mib"))
        print(f"{name:22} {spent:6.1f} CPU-ms a step, peak RSS {memory:5.0f} MiB")
    blocks, exact = ways
    ratios = [one[exact]["cpu_ms"] / one[blocks]["cpu_ms"] for one in rounds]
    holds = median(ratios) >= AT_LEAST
    told = f"{median(ratios):.2f} times as fast ({min(ratios):.2f}-{max(ratios):.2f}), at least {AT_LEAST}"
    print(f"{'holds' if holds else 'BELOW'}  {told}")
    sys.exit(not holds)


if __name__ == "__main__":
    main()
