"""Output tokens per CPU-second of decoding against Hugging Face's generate at fp32 and against CTranslate2: 6+2 layers
of width 512.

Every contestant is a one-thread process. They run in turn, round after round; a ratio is taken within a round, from CPU
time. Weights and tokens are random: speed alone, nothing about quality. All decode the same batches, sorted by source
length:
    equal      one batch, every output has 28 tokens;
    realistic  every sentence has a length of its own. generate keeps finished sentences until the longest of the batch
               ends; what each sentence needs is counted, 57 % of what generate makes;
    natural    every sentence ends by itself, near its own length (natural_lengths.py): CTranslate2 cannot be told to
               end each elsewhere. Each way's own tokens are counted.
"engine" is CTranslate2 as labels are made with it, from lines of text to a file of hypotheses; "ct2" is given pieces,
and what it finds is dropped.
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
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist, median
from typing import Any

import natural_lengths  # beside this file

V, D = 8000, 512
EQUAL_LENGTH, NUM_EQUAL = 28, 56
NUM_REALISTIC, BATCH = 112, 56
HF = "hf fp32"
KDLAB = ("kdlab fp32", "kdlab bf16", "kdlab int8")

# Decodes the batch of a number with so many beams; the number of tokens made.
Search = Callable[[int, int], int]


@dataclass(frozen=True)
class Contest:
    """How many times as fast as the base; None where no limit was set."""

    name: str
    way: str
    at_least: float | None = None
    aim: float | None = None
    base: str = HF


CONTESTS = (
    *(Contest("equal beam 1", way) for way in (*KDLAB, "ct2 fp32", "ct2 int8")),
    Contest("equal beam 1", "kdlab int8", base="ct2 int8"),
    Contest("equal beam 5", "kdlab fp32", 1.30, 1.6),
    Contest("equal beam 5", "kdlab bf16", 2.2, 2.6),
    Contest("equal beam 5", "kdlab int8", 3.0, 3.5),
    Contest("equal beam 5", "ct2 fp32"),
    Contest("equal beam 5", "ct2 int8"),
    Contest("equal beam 5", "kdlab int8", 0.9, 1.1, base="ct2 int8"),
    *(Contest("realistic beam 1", way) for way in KDLAB),
    Contest("realistic beam 5", "kdlab fp32", 2.2, 2.6),
    Contest("realistic beam 5", "kdlab bf16"),
    Contest("realistic beam 5", "kdlab int8", 5.0, 6.5),
    Contest("natural beam 1", "kdlab fp32", base="ct2 fp32"),
    Contest("natural beam 1", "kdlab int8", base="ct2 int8"),
    Contest("natural beam 5", "kdlab fp32", base="ct2 fp32"),
    Contest("natural beam 5", "kdlab int8", 0.9, 1.1, base="ct2 int8"),
    Contest("natural beam 5", "engine int8", 0.9, 1.0, base="ct2 int8"),
)


def quantiles(count: int, middle: float, sigma: float) -> list[int]:
    """Lengths of a lognormal distribution without chance, ascending."""
    return [round(middle * math.exp(sigma * NormalDist().inv_cdf((i + 0.5) / count))) for i in range(count)]


def own_length(num_src_tokens: int) -> int:
    """Tokens of the output of a source: as many as the source, times a lognormal factor (sigma 0.2)."""
    share = (num_src_tokens * 0.6180339887) % 1  # of the golden ratio: neighbours fall far apart
    return max(2, round(num_src_tokens * math.exp(0.2 * NormalDist().inv_cdf(min(max(share, 0.02), 0.98)))))


def batches(lengths: str) -> list[list[list[int]]]:
    """Source ids, EOS last, in batches sorted by length; last a small one, to warm up."""
    import torch

    random = torch.Generator().manual_seed(3)
    sizes = quantiles(NUM_EQUAL if lengths == "equal" else NUM_REALISTIC, 26, 0.25)[::-1]
    ids = [[*torch.randint(2, V - 1, (n - 1,), generator=random).tolist(), 0] for n in sizes]
    return cut(ids)


def cut(ids: list[Any]) -> list[list[Any]]:
    """Batches of BATCH, and a small one."""
    return [*(ids[at : at + BATCH] for at in range(0, len(ids), BATCH)), ids[-8:]]


def wanted(lengths: str, src: list[int]) -> int:
    return EQUAL_LENGTH if lengths == "equal" else own_length(len(src))


def kdlab_model(lengths: str, folder: Path) -> tuple[Any, list[str]]:
    """The model, and lines for it where it has a vocabulary."""
    import torch

    from kdlab.models.folder import load_model
    from kdlab.models.init import random_init
    from kdlab.models.transformer import Transformer, TransformerConfig

    if lengths == "natural":
        return load_model(folder / "model"), (folder / "lines.txt").read_text(encoding="utf-8").splitlines()
    model = Transformer(TransformerConfig(V, V, 6, 2, D, 4 * D, 8, dropout=0.1))
    random_init(model, seed=1)
    with torch.no_grad():
        model.src_embedding.weight[0] = 0.0  # a logit of 0 never wins: no sentence ends before its length
    return model, []


def kdlab_search(precision: str, lengths: str, folder: Path) -> tuple[list[Any], Search]:
    from kdlab import runtime
    from kdlab.decoding.beam import BeamConfig, beam_search
    from kdlab.decoding.translate import for_decoding

    class Forced(BeamConfig):
        def max_length(self, num_src_tokens: int, max_positions: int) -> int:
            return EQUAL_LENGTH if lengths == "equal" else own_length(num_src_tokens)

    runtime.start_torch(1)
    model, lines = kdlab_model(lengths, folder)
    work = natural(folder, lines) if lines else batches(lengths)
    model = for_decoding(model, precision=precision, device="cpu")

    def search(number: int, beam_size: int) -> int:
        config = (BeamConfig if lines else Forced)(beam_size, 1.0)
        found = beam_search(model, work[number], config)
        assert lines or [len(best[0].ids) for best in found] == [wanted(lengths, src) for src in work[number]]
        return sum(len(best[0].ids) + best[0].finished for best in found)

    return work, search


def ct2_search(precision: str, lengths: str, folder: Path) -> tuple[list[Any], Search]:
    """CTranslate2 by itself: pieces in, results dropped."""
    import ctranslate2

    from kdlab.data.tokenizer import Tokenizer
    from kdlab.decoding.beam import BeamConfig
    from kdlab.deploy.ctranslate2 import export

    model, lines = kdlab_model(lengths, folder)
    pieces = Tokenizer.open(folder / "model/tokenizer").src_pieces if lines else ["</s>", *map(str, range(1, V - 1))]
    with tempfile.TemporaryDirectory() as place:
        quantization = "none" if precision == "fp32" else precision
        export(model, pieces, pieces, Path(place) / "ct2", quantization=quantization)
        translator = ctranslate2.Translator(f"{place}/ct2", inter_threads=1, intra_threads=1)
    work = natural(folder, lines) if lines else batches(lengths)

    def search(number: int, beam_size: int) -> int:
        batch = [[pieces[token] for token in ids[:-1]] for ids in work[number]]
        limit = max(BeamConfig(1, 1.0).max_length(len(ids), 256) for ids in work[number]) if lines else EQUAL_LENGTH
        found = translator.translate_batch(
            batch,
            beam_size=beam_size,
            length_penalty=1.0,
            max_decoding_length=limit,
            max_input_length=0,
            return_end_token=True,
            return_scores=True,
        )
        assert lines or all(len(best.hypotheses[0]) == EQUAL_LENGTH for best in found)
        return sum(len(best.hypotheses[0]) for best in found)

    return work, search


def engine_search(precision: str, lengths: str, folder: Path) -> tuple[list[Any], Search]:
    """CTranslate2 as labels are made with it: lines of text in, a file of hypotheses out, all in one go."""
    from kdlab.data.hypotheses import HypothesesWriter
    from kdlab.decoding.engine import Sources
    from kdlab.decoding.engines import open_engine

    _, lines = kdlab_model(lengths, folder)
    opened: dict[int, Any] = {}
    place = Path(tempfile.mkdtemp(dir=folder))
    work = [cut(lines)[:-1], cut(lines)[-1:]]
    limits = {"length_penalty": 1.0, "max_length_ratio": 2.0, "max_length_extra": 10}

    def search(number: int, beam_size: int) -> int:
        if beam_size not in opened:  # while it warms up
            decode = {**limits, "beam_size": beam_size, "precision": precision, "engine": "ctranslate2"}
            opened[beam_size] = open_engine([folder / "model"], decode, device="cpu", threads=1, scratch=place)
        tokens = 0
        with HypothesesWriter(place / "found") as writer:
            batches = [Sources([*range(len(some))], some) for some in work[number]]
            for batch, found in zip(batches, opened[beam_size].decode(batches), strict=True):
                columns = ("text", "score", "log_prob", "num_tokens", "finished")
                writer.write(
                    {
                        "row_id": batch.row_id,
                        "src_hash": batch.row_id,
                        "tgt": [[[*one.ids, 0] for one in candidates] for candidates in found],
                        **{
                            name: [[getattr(one, name) for one in candidates] for candidates in found]
                            for name in columns
                        },
                    }
                )
                tokens += sum(candidates[0].num_tokens for candidates in found)
        return tokens

    return work, search


def natural(folder: Path, lines: list[str]) -> list[list[list[int]]]:
    """The lines as batches of ids."""
    from kdlab.data.tokenizer import Tokenizer

    ids = Tokenizer.open(folder / "model/tokenizer").encode_src(lines)
    return cut(ids)


def hf_search(precision: str, lengths: str, folder: Path) -> tuple[list[Any], Search]:
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

    work = batches(lengths)

    def search(number: int, beam_size: int) -> int:
        batch = work[number]
        longest = max(len(src) for src in batch)
        ids = torch.tensor([src + [V - 1] * (longest - len(src)) for src in batch])
        steps = max(wanted(lengths, src) for src in batch)
        mask = torch.arange(longest) < torch.tensor([len(src) for src in batch])[:, None]
        found = model.generate(
            input_ids=ids, attention_mask=mask.long(), num_beams=beam_size, do_sample=False,
            min_new_tokens=steps, max_new_tokens=steps,
        )  # fmt: skip
        assert found.shape == (len(batch), steps + 1)
        return sum(wanted(lengths, src) for src in batch)

    return work, search


SEARCHES = {"hf": hf_search, "kdlab": kdlab_search, "ct2": ct2_search, "engine": engine_search}


def contestant(way: str, folder: Path, tasks: list[str]) -> dict[str, float]:
    """Tokens per CPU-second of each task, e.g. "equal beam 5"; in a process of its own."""
    library, precision = way.split()
    found = {}
    for task in tasks:
        lengths, _, beam = task.split()
        work, search = SEARCHES[library](precision, lengths, folder)
        search(len(work) - 1, int(beam))  # warms up, with a few short sentences
        begun = time.process_time()
        tokens = sum(search(number, int(beam)) for number in range(len(work) - 1))
        found[task] = tokens / (time.process_time() - begun)
    return found


def run(way: str, folder: Path, tasks: list[str]) -> dict[str, float]:
    """What one process reports."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, __file__, "--contestant", way, str(folder), *tasks]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def row(contest: Contest, rounds: list[dict[str, dict[str, float]]]) -> tuple[str, bool]:
    """The contest's line of the table, and whether it holds."""
    speeds = [(one[contest.way][contest.name], one[contest.base][contest.name]) for one in rounds]
    ratios = [ours / base for ours, base in speeds]
    ours, base = (median(side) for side in zip(*speeds, strict=True))
    limit = "" if contest.at_least is None else f"  at least {contest.at_least:.2f}, aim {contest.aim:.2f}"
    line = (
        f"{contest.name:17} {contest.way:11} {ours:6.0f} tokens/CPU-s, {contest.base:8} {base:5.0f}  "
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
        way, folder, *tasks = chosen.contestant
        print(json.dumps(contestant(way, Path(folder), tasks)))
        return
    contests = [contest for contest in CONTESTS if contest.name.startswith(chosen.only)]
    if not contests:
        parser.error(f"no contest begins with {chosen.only!r}; they are {', '.join({c.name for c in CONTESTS})}")
    tasks: dict[str, list[str]] = {}
    for contest in contests:
        for way in (contest.base, contest.way):
            if contest.name not in tasks.setdefault(way, []):
                tasks[way].append(contest.name)
    rounds: list[dict[str, dict[str, float]]] = []
    with tempfile.TemporaryDirectory() as place:
        if any(contest.name.startswith("natural") for contest in contests):
            sizes = quantiles(NUM_REALISTIC, 20, 0.25)[::-1]  # words, of 1.3 tokens each
            lines = natural_lengths.make(Path(place) / "model", V, D, sizes, own_length)
            (Path(place) / "lines.txt").write_text("\n".join(lines), encoding="utf-8")
        for number in range(chosen.rounds):
            rounds.append({})
            for way in tasks:
                rounds[-1][way] = run(way, Path(place), tasks[way])
                print(json.dumps({"round": number + 1, way: rounds[-1][way]}), file=sys.stderr, flush=True)
    table = [row(contest, rounds) for contest in contests]
    for line, holds in table:
        print(f"{'holds' if holds else 'BELOW'}  {line}")
    sys.exit(not all(holds for _, holds in table))


if __name__ == "__main__":
    main()
