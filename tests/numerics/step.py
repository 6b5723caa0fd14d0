"""One optimizer step of a tiny student on every path, and the same step by hand: sentence by sentence, no padding.

Everything is looked up in its module when it is used, so that a test may plant a defect there.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from kdlab import files
from kdlab.data import batching
from kdlab.data.identity import IDENTITY
from kdlab.models.init import random_init
from kdlab.models.transformer import Transformer, TransformerConfig
from kdlab.objectives import hidden, reduce
from kdlab.objectives.nll import Nll
from kdlab.objectives.objective import Objective, WeightedTerm
from kdlab.objectives.word_kd import WordKD
from kdlab.teachers.cache_files import CARD, Column
from kdlab.teachers.cached import CachedTeacher
from kdlab.types import Batch, Side, TopK

V, D, TEMPERATURE, SMOOTHING = 12, 8, 2.0, 0.3
PAD, REAL = V - 1, V - 1  # the padding id is the last; so many tokens are real
TEMPERATURES = (0.5, 1.0, 2.0, 5.0, 100.0)
LOOSE = {"bf16": 0.05}  # relative distance from fp32; elsewhere 2e-5
KD = WordKD  # a test may put another in its place


def ragged(seed: int, num: int = 12) -> list[np.ndarray]:
    """Sentences of 2 to 9 tokens, EOS at the end."""
    generator = np.random.default_rng(seed)
    return [np.append(generator.integers(2, PAD, generator.integers(1, 9)), 0) for _ in range(num)]


SRC, TGT = ragged(1), ragged(2)
IS_PSEUDO = np.arange(len(SRC)) % 3 == 1
ROWS = SimpleNamespace(
    row_id=np.arange(len(SRC)),
    src_ids=lambda index: [SRC[i] for i in index],
    tgt_ids=lambda index: [TGT[i] for i in index],
)
WHOLE = [list(range(len(SRC)))]


def microbatches(cut: list[list[int]]) -> list[Batch]:
    """The rows, cut so; a third of them are pseudo-labels."""
    pads = {"src_pad_id": PAD, "tgt_pad_id": PAD}
    takes = {"labels": ROWS, "takes_gold": ~IS_PSEUDO, "takes_pseudo": IS_PSEUDO}
    return [batching.collate(ROWS, np.array(index), **pads, **takes) for index in cut]


def model(seed: int) -> Transformer:
    """A model whose softmax has a bias that matters."""
    made = Transformer(TransformerConfig(V, V, 1, 2, D, 12, 2, dropout=0.0, softmax_bias=True))
    random_init(made, seed)
    with torch.no_grad():
        made.softmax_bias.normal_(generator=torch.Generator().manual_seed(seed))
    return made


def goal(gold: float = 1.0, pseudo: float = 0.7, kd: float = 0.5, *, temperature: float = TEMPERATURE) -> Objective:
    """Smoothed NLL of gold targets, NLL of pseudo-labels, KD on both."""
    return Objective(
        {
            "gold": WeightedTerm(gold, "gold", "tgt_token", Nll(SMOOTHING)),
            "pseudo": WeightedTerm(pseudo, "pseudo", "tgt_token", Nll()),
            "kd": WeightedTerm(kd, "all", "tgt_token", KD(temperature)),
        }
    )


@dataclass(frozen=True)
class Step:
    """What a step gives: the scalar, each term's sum, the gradient of all parameters in one vector."""

    loss: float
    sums: dict[str, float]
    gradient: torch.Tensor

    def distance(self, other: Step) -> float:
        """The greatest relative difference of losses, sums and gradients."""
        pairs = [(self.loss, other.loss), *((self.sums[name], other.sums[name]) for name in other.sums)]
        numbers = max(abs(a - b) / max(abs(b), 1e-3) for a, b in pairs)
        return max(numbers, float((self.gradient - other.gradient).norm() / other.gradient.norm().clamp(min=1e-6)))

    def is_near(self, other: Step, path: str) -> bool:
        """Equal but for rounding; nothing is near to NaN."""
        return self.distance(other) < LOOSE.get(path, 2e-5)


class Kept:
    """A teacher that was asked once, sentence by sentence, and is read from disk."""

    def __init__(self, net: Transformer):
        with tempfile.TemporaryDirectory() as place:
            folder, column = Path(place), Column("fp32", D)
            for part, rows in (("gold", np.flatnonzero(~IS_PSEUDO)), ("pseudo", np.flatnonzero(IS_PSEUDO))):
                table = np.zeros(len(rows), IDENTITY)
                table["row_id"], table["tgt_len"] = rows, [len(TGT[row]) for row in rows]
                np.save(folder / f"{part}.rows.npy", table)
                column.pack(torch.cat([alone(net, row) for row in rows])).tofile(folder / f"{part}.hidden")
            columns = {"hidden": {"dtype": "fp32", "width": D}}
            files.write_json(folder / CARD, {"columns": columns, "temperatures": None, "parts": ["gold", "pseudo"]})
            self._teacher = CachedTeacher(folder, net.head())  # the files stay as long as they are mapped

    def guide_of(self, batch: Batch) -> Side:
        """What the terms see."""
        try:
            with self._teacher.guide(batch) as (side, _):
                return side
        except ValueError as error:
            raise AssertionError("the cache does not know these rows") from error


def alone(net: Transformer, row: int) -> torch.Tensor:
    """Hidden states of one sentence that has no neighbours and no padding."""
    src, tgt = torch.tensor(SRC[row])[None], torch.tensor(TGT[row])[None]
    tgt_in = torch.cat([torch.full((1, 1), PAD), tgt[:, :-1]], 1)
    return net(src, torch.ones_like(src, dtype=torch.bool), tgt_in).decoder_ND


def step(
    path: str,
    objective: Objective | None = None,
    cut: list[list[int]] = WHOLE,
    *,
    student: Transformer | None = None,
    teacher: Transformer | None = None,
    chunk_size: int = 7,
) -> Step:
    """A step as training makes it; `path` is plain, chunked, cached, top-k (k = V) or bf16."""
    ours, theirs = student or model(1), teacher or model(2)
    objective = objective or goal()
    batches, loss = microbatches(cut), 0.0
    scales, sums = objective.scales(objective.units(batches)), dict.fromkeys(objective.active, 0.0)
    kept = Kept(theirs) if path == "cached" else None
    ours.zero_grad()
    for batch in batches:
        with torch.autocast("cpu", torch.bfloat16, enabled=path == "bf16"):
            targets = batch.targets
            args = (batch.src_BS, batch.src_mask_BS, targets.tgt_in_RT, targets.source_R, targets.mask_RT)
            out = ours(*args)
            with torch.no_grad():
                seen = theirs(*args)
            guide = kept.guide_of(batch) if kept else Side(seen.decoder_ND, theirs.head())
            if path == "top-k":
                guide = TopK.of(reduce.project(seen.decoder_ND, theirs.head(), torch.float32), REAL, TEMPERATURES)
            side, settings = Side(out.decoder_ND, ours.head()), {"chunk_size": chunk_size}
            parts = [
                reduce.reduce(objective.token_terms, scales, targets, side, guide, **settings, plain=path == "plain")
            ]
            if objective.hidden_terms:
                maps = hidden.projections({}, D, D, {})
                parts.append(hidden.reduce_hidden(objective.hidden_terms, scales, batch, out, seen, maps))
        total = torch.stack([part.loss for part in parts]).sum()
        total.backward()
        loss += total.item()
        for name, value in (entry for part in parts for entry in part.sums.items()):
            sums[name] += float(value)
    return Step(loss, sums, flat(ours))


def flat(net: Transformer) -> torch.Tensor:
    """All gradients in one vector."""
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in net.parameters()])


@cache
def by_hand(
    rows: tuple[int, ...] = tuple(WHOLE[0]), *, gold: float = 1.0, pseudo: float = 0.7, kd: float = 0.5
) -> Step:
    """The same step as a loop over sentences, from formulas written here, in fp32."""
    ours, theirs = model(1), model(2)
    sums = {name: torch.zeros(()) for name in ("gold", "pseudo", "kd")}
    for row in rows:
        tgt = torch.tensor(TGT[row])
        z, v = ((alone(net, row) @ net.src_embedding.weight.t() + net.softmax_bias)[:, :REAL] for net in (ours, theirs))
        nll = -torch.log_softmax(z, -1)
        if IS_PSEUDO[row]:
            sums["pseudo"] = sums["pseudo"] + nll[range(len(tgt)), tgt].sum()
        else:
            smoothed = (1 - SMOOTHING) * nll[range(len(tgt)), tgt] + SMOOTHING * nll.mean(-1)
            sums["gold"] = sums["gold"] + smoothed.sum()
        log_p, log_q = (torch.log_softmax(x / TEMPERATURE, -1) for x in (v.detach(), z))
        sums["kd"] = sums["kd"] + TEMPERATURE**2 * (log_p.exp() * (log_p - log_q)).sum()
    units = {
        "gold": sum(len(TGT[row]) for row in rows if not IS_PSEUDO[row]),
        "pseudo": sum(len(TGT[row]) for row in rows if IS_PSEUDO[row]),
        "kd": sum(len(TGT[row]) for row in rows),
    }
    weights = {"gold": gold, "pseudo": pseudo, "kd": kd}
    active = {name for name in sums if weights[name]}
    loss = torch.stack([weights[name] * sums[name] / units[name] for name in active if units[name]]).sum()
    loss.backward()
    return Step(loss.item(), {name: sums[name].item() for name in sums if name in active}, flat(ours))
