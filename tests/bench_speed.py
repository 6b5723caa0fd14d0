"""Tokens per CPU-second of training, of a KD step and of beam search, one thread; share of real tokens in batches.

Random weights and lengths like those of captions: speed only. Compare lines of one run; another machine gives others.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import json
import time
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import torch

from kdlab import runtime
from kdlab.data.batching import StepStream, padding_ratio
from kdlab.decoding.beam import BeamConfig
from kdlab.decoding.translate import for_decoding, translate
from kdlab.models.init import random_init
from kdlab.models.transformer import Transformer, TransformerConfig, num_parameters
from kdlab.objectives.nll import Nll
from kdlab.objectives.objective import Objective, WeightedTerm
from kdlab.objectives.reduce import Side, reduce
from kdlab.objectives.word_kd import WordKD
from kdlab.teachers.frozen import FrozenTeacher

V = 8000
STEPS = 6
NLL = {"nll": WeightedTerm(1.0, "gold", "tgt_token", Nll())}
KD = {**NLL, "kd": WeightedTerm(1.0, "gold", "tgt_token", WordKD(1.0))}


class Rows(SimpleNamespace):
    """Random sentences of lognormal lengths (mean 28), target and source correlated."""

    def __len__(self) -> int:
        return len(self.row_id)


def rows(count: int) -> Rows:
    generator = np.random.default_rng(3)
    src_len = np.clip(generator.lognormal(3.15, 0.6, count), 2, 120).astype(np.int32)
    tgt_len = np.clip(src_len * generator.lognormal(0.0, 0.2, count), 2, 120).astype(np.int32)

    def ids(lengths: np.ndarray) -> Callable[[np.ndarray], list[np.ndarray]]:
        return lambda index: [np.append(generator.integers(2, V - 1, lengths[i] - 1), 0) for i in index]

    return Rows(row_id=np.arange(count), src_len=src_len, tgt_len=tgt_len, src_ids=ids(src_len), tgt_ids=ids(tgt_len))


def model(layers: int, d_model: int, seed: int) -> Transformer:
    made = Transformer(TransformerConfig(V, V, layers, layers, d_model, 4 * d_model, 4, dropout=0.1))
    random_init(made, seed)
    return made


def train(
    stream: StepStream, student: Transformer, precision: str, terms: dict, teacher: FrozenTeacher | None
) -> float:
    """Target tokens per CPU-second of whole optimizer steps."""
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-4, fused=True)
    objective, tokens, begun = Objective(terms), 0, 0.0
    for number, (_, step) in zip(range(STEPS + 1), stream, strict=False):
        if number == 1:  # the first one warms up
            tokens, begun = 0, time.process_time()
        scales = objective.scales(objective.units(step))
        for batch in step:
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                targets = batch.targets
                out = student(batch.src_BS, batch.src_mask_BS, targets.tgt_in_RT, targets.source_R, targets.mask_RT)
                side, guide = Side(out.decoder_ND, student.head()), None
                if teacher is not None:
                    with teacher.head() as head:
                        guide = Side(teacher(batch).decoder_ND, head)
                reduce(terms, scales, targets, side, guide, chunk_size=1024).loss.backward()
            tokens += batch.num_units("all", "tgt_token")
        optimizer.step()
        optimizer.zero_grad()
    return tokens / (time.process_time() - begun)


def decode(net: Transformer, source: Rows, precision: str, beam_size: int) -> float:
    """Output tokens per CPU-second."""
    with torch.no_grad():
        net.src_embedding.weight[0] = 0.0  # a logit of 0 never wins: no sentence ends before its source's length
    fast = for_decoding(net, precision=precision, device="cpu").eval()
    src_ids = [ids.tolist() for ids in source.src_ids(np.arange(128))]
    config = BeamConfig(beam_size=beam_size, length_penalty=1.0, max_length_ratio=1.0, max_length_extra=0)
    begun = time.process_time()
    found = translate(fast, src_ids, config, batch_tokens=16384)
    return sum(len(best[0].ids) for best in found) / (time.process_time() - begun)


def main() -> None:
    """Prints one JSON line a figure."""
    runtime.start_torch(1)
    source = rows(20_000)
    stream = StepStream(
        source, seed=1, tokens_per_step=2048, microbatch_tokens=8192, src_pad_id=V - 1, tgt_pad_id=V - 1
    )
    epoch = stream.epoch(0)
    print(json.dumps({"real share of tokens in batches": round(padding_ratio(epoch.lengths, epoch.steps), 3)}))
    for name, layers, d_model in (("small_1x1", 1, 128), ("small_3x3", 3, 256)):
        student = model(layers, d_model, 1)
        for precision in ("fp32", "bf16"):
            teacher = FrozenTeacher(model(3, 256, 2), precision=precision)
            figures = {
                "train tokens/CPU-s": train(stream, student, precision, NLL, None),
                "KD (teacher small_3x3) tokens/CPU-s": train(stream, student, precision, KD, teacher),
                "greedy tokens/CPU-s": decode(student, source, precision, 1),
                "beam 5 tokens/CPU-s": decode(student, source, precision, 5),
            }
            shown = {figure: round(value) for figure, value in figures.items()}
            print(json.dumps({"model": name, "parameters": num_parameters(student), "precision": precision, **shown}))


if __name__ == "__main__":
    main()
