"""Output tokens per CPU-second of decoding against Hugging Face's generate at fp32: 6+2 layers of width 512.

Every contestant is a one-thread process. They run in turn, round after round; a ratio is taken within a round, from CPU
time. Weights and tokens are random: speed alone, nothing about quality. All decode the same batches, sorted by source
length, twice over:
    equal      one batch, every output has 28 tokens;
    realistic  every sentence has a length of its own. generate keeps finished sentences until the longest of the batch
               ends; what each sentence needs is counted, 57 % of what generate makes.
Prints a table and exits with 1 where the median over the rounds misses its "at least".

    python tests/bench_decode.py --rounds 3 --only "realistic beam 5"
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from statistics import NormalDist, median
from typing import Any

V, D = 8000, 512
EQUAL_LENGTH, NUM_EQUAL = 28, 56
NUM_REALISTIC, BATCH = 112, 56
WAYS = ("hf fp32", "kdlab fp32", "kdlab bf16", "kdlab int8")  # the first is the base


@dataclass(frozen=True)
class Contest:
    """How many times as fast as the base; None where no limit was set."""

    name: str
    way: str
    at_least: float | None = None
    aim: float | None = None


CONTESTS = (
    *(Contest("equal beam 1", way) for way in WAYS[1:]),
    Contest("equal beam 5", "kdlab fp32", 1.30, 1.6),
    Contest("equal beam 5", "kdlab bf16", 2.2, 2.6),
    Contest("equal beam 5", "kdlab int8", 3.0, 3.5),
    *(Contest("realistic beam 1", way) for way in WAYS[1:]),
    Contest("realistic beam 5", "kdlab fp32", 2.2, 2.6),
    Contest("realistic beam 5", "kdlab bf16"),
    Contest("realistic beam 5", "kdlab int8", 5.0, 6.5),
)


def quantiles(count: int, middle: float, sigma: float) -> list[int]:
    """Lengths of a lognormal distribution without chance, ascending."""
    return [round(middle * math.exp(sigma * NormalDist().inv_cdf((i + 0.5) / count))) for i in range(count)]


def own_length(num_src_tokens: int) -> int:
    """Tokens of the output of a source: as many as the source, times a lognormal factor (sigma 0.2)."""
    share = (num_src_tokens * 0.6180339887) % 1  # of the golden ratio: neighbours fall far apart
    return max(2, round(num_src_tokens * math.exp(0.2 * NormalDist().inv_cdf(min(max(share, 0.02), 0.98)))))


def batches(lengths: str) -> list[list[list[int]]]:
    """Source ids, EOS last, in batches sorted by length."""
    import torch

    random = torch.Generator().manual_seed(3)
    sizes = quantiles(NUM_EQUAL if lengths == "equal" else NUM_REALISTIC, 26, 0.25)[::-1]
    ids = [[*torch.randint(2, V - 1, (n - 1,), generator=random).tolist(), 0] for n in sizes]
    return [ids[at : at + BATCH] for at in range(0, len(ids), BATCH)]


def wanted(lengths: str, src: list[int]) -> int:
    return EQUAL_LENGTH if lengths == "equal" else own_length(len(src))


def kdlab_search(precision: str) -> Any:
    """A function of a batch, a beam size and the kind of lengths that decodes."""
    import torch

    from kdlab import runtime
    from kdlab.decoding.beam import BeamConfig, beam_search
    from kdlab.decoding.translate import for_decoding
    from kdlab.models.init import random_init
    from kdlab.models.transformer import Transformer, TransformerConfig

    class Forced(BeamConfig):
        def max_length(self, num_src_tokens: int, max_positions: int) -> int:
            return EQUAL_LENGTH if self.max_length_ratio == 0 else own_length(num_src_tokens)

    runtime.start_torch(1)
    model = Transformer(TransformerConfig(V, V, 6, 2, D, 4 * D, 8, dropout=0.1))
    random_init(model, seed=1)
    with torch.no_grad():
        model.src_embedding.weight[0] = 0.0  # a logit of 0 never wins: no sentence ends before its length
    model = for_decoding(model, precision=precision, device="cpu")

    def search(batch: list[list[int]], beam_size: int, lengths: str) -> None:
        ratio = 0.0 if lengths == "equal" else 1.0
        found = beam_search(model, batch, Forced(beam_size, 1.0, max_length_ratio=ratio, max_length_extra=1))
        assert [len(best[0].ids) for best in found] == [wanted(lengths, src) for src in batch]

    return search


def hf_search() -> Any:
    import torch
    from transformers import MarianConfig, MarianMTModel, logging

    logging.set_verbosity_error()
    torch.set_num_threads(1)
    torch.manual_seed(1)
    sides = {
        f"{side}_{name}": n
        for side in ("encoder", "decoder")
        for name, n in (("ffn_dim", 4 * D), ("attention_heads", 8))
    }
    special = dict(pad_token_id=V - 1, eos_token_id=0, bos_token_id=None, decoder_start_token_id=V - 1)
    model = MarianMTModel(
        MarianConfig(
            vocab_size=V,
            encoder_layers=6,
            decoder_layers=2,
            d_model=D,
            activation_function="relu",
            scale_embedding=True,
            max_position_embeddings=1024,
            forced_eos_token_id=None,
            **sides,
            **special,
        )
    ).eval()

    def search(batch: list[list[int]], beam_size: int, lengths: str) -> None:
        longest = max(len(src) for src in batch)
        ids = torch.tensor([src + [V - 1] * (longest - len(src)) for src in batch])
        steps = max(wanted(lengths, src) for src in batch)
        mask = torch.arange(longest) < torch.tensor([len(src) for src in batch])[:, None]
        found = model.generate(
            input_ids=ids, attention_mask=mask.long(), num_beams=beam_size, do_sample=False,
            min_new_tokens=steps, max_new_tokens=steps,
        )  # fmt: skip
        assert found.shape == (len(batch), steps + 1)

    return search


def contestant(way: str, tasks: list[str]) -> dict[str, float]:
    """Tokens per CPU-second of each task, e.g. "equal beam 5"; in a process of its own."""
    library, precision = way.split()
    search = hf_search() if library == "hf" else kdlab_search(precision)
    found = {}
    search(batches("equal")[0][:8], 5, "equal")  # warms up
    for task in tasks:
        lengths, _, beam = task.split()
        work = batches(lengths)
        begun = time.process_time()
        for batch in work:
            search(batch, int(beam), lengths)
        tokens = sum(wanted(lengths, src) for batch in work for src in batch)
        found[task] = tokens / (time.process_time() - begun)
    return found


def run(way: str, tasks: list[str]) -> dict[str, float]:
    """What one process reports."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, __file__, "--contestant", way, *tasks]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def row(contest: Contest, rounds: list[dict[str, dict[str, float]]]) -> tuple[str, bool]:
    """The contest's line of the table, and whether it holds."""
    speeds = [(one[contest.way][contest.name], one[WAYS[0]][contest.name]) for one in rounds]
    ratios = [ours / base for ours, base in speeds]
    ours, base = (median(side) for side in zip(*speeds, strict=True))
    limit = "" if contest.at_least is None else f"  at least {contest.at_least:.2f}, aim {contest.aim:.2f}"
    line = (
        f"{contest.name:17} {contest.way:11} {ours:6.0f} tokens/CPU-s, {WAYS[0]} {base:5.0f}  "
        f"{median(ratios):5.2f} x ({min(ratios):.2f}-{max(ratios):.2f}){limit}"
    )
    return line, contest.at_least is None or median(ratios) >= contest.at_least


def main() -> None:
    """Runs the contests whose names begin with --only; with --contestant, one side of them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="contests whose name begins so")
    parser.add_argument("--contestant", nargs="+", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.contestant:
        print(json.dumps(contestant(chosen.contestant[0], chosen.contestant[1:])))
        return
    contests = [contest for contest in CONTESTS if contest.name.startswith(chosen.only)]
    if not contests:
        parser.error(f"no contest begins with {chosen.only!r}; they are {', '.join({c.name for c in CONTESTS})}")
    tasks = list(dict.fromkeys(contest.name for contest in contests))
    rounds = []
    for number in range(chosen.rounds):
        rounds.append({})
        for way in WAYS:
            rounds[-1][way] = run(way, tasks)
            print(json.dumps({"round": number + 1, way: rounds[-1][way]}), file=sys.stderr, flush=True)
    lines = [row(contest, rounds) for contest in contests]
    for line, holds in lines:
        print(f"{'holds' if holds else 'BELOW'}  {line}")
    sys.exit(not all(holds for _, holds in lines))


if __name__ == "__main__":
    main()
