"""Check of the vocabulary contract: one id is one word for corpus, teacher and student, and padding is no word."""

from __future__ import annotations

import math

import torch

from kdlab.checks import reference
from kdlab.checks.formulas import biased
from kdlab.checks.material import Material
from kdlab.checks.probe import measure
from kdlab.checks.table import Finding, worst
from kdlab.models.transformer import Transformer
from kdlab.types import Batch

WORSE_THAN_CHANCE = 1.0  # nats above a uniform guess, which nothing that has learnt these words reaches
PADDING_LIMIT = 1e-9
LOUD = 30.0  # of the padding id's logit


def vocabulary(material: Material) -> Finding:
    """Counts the broken parts of the contract.

    Fingerprints say that the tables were meant for the same words. Whether the weights agree shows in what a finished
    model makes of the corpus: one whose ids mean other words is sure of wrong ones, and so worse than a uniform guess.
    """
    broken, notes = [], []
    compares = material.objective.needs_teacher
    ours = material.tokenizers["corpus"].fingerprint
    for who, tokenizer in material.tokenizers.items():
        needed = who == "student" or (who == "teacher" and compares)
        if needed and tokenizer.fingerprint != ours:
            broken.append(f"the {who}'s vocabulary {tokenizer.fingerprint} is not the corpus's {ours}")
    models = {"student": material.student, **({"teacher": material.teacher} if material.teacher and compares else {})}
    if compares and material.teacher is not None and _sizes(material.teacher) != _sizes(material.student):
        broken.append(f"tables of {_sizes(material.teacher)} (teacher) and {_sizes(material.student)} (student)")
    corpus = material.tokenizers["corpus"]
    words = (corpus.src_vocab_size, corpus.tgt_vocab_size)
    if material.vocabulary_is_whole and _sizes(material.student) != words:
        broken.append(f"tables of {_sizes(material.student)} for {words} ids")
    step = material.gold()
    for who, model in models.items():
        if who not in material.trained:
            continue
        nats, chance = _nll(model, step), math.log(model.config.tgt_vocab_size - 1)
        notes.append(f"{who} {nats:.2f} nats a gold token, a uniform guess {chance:.2f}")
        if not nats <= chance + WORSE_THAN_CHANCE:
            broken.append(f"the finished {who} is far worse than a guess: its ids are other words than the corpus's")
    if not (leak := _padding(material)) <= PADDING_LIMIT:
        broken.append(f"the padding id has a share in loss or gradient ({leak:.2g})")
    compared = f"tokenizers of {', '.join(material.tokenizers)}, tables, padding id"
    what = f"broken parts: {'; '.join([*broken, compared, *notes])}"
    return Finding("vocabulary contract", float(len(broken)), 0.0, what)


def _sizes(model: Transformer) -> tuple[int, int]:
    return model.config.src_vocab_size, model.config.tgt_vocab_size


@torch.no_grad()
def _nll(model: Transformer, step: list[Batch]) -> float:
    nats, tokens = 0.0, 0
    for batch in step:
        targets = batch.targets
        tgt_N = targets.tgt_out_RT[targets.mask_RT]
        log_probs_NV = torch.log_softmax(reference.logits(model, batch), dim=-1)
        known = tgt_N < log_probs_NV.shape[1]  # a model with too small a table has no opinion of the others
        nats -= float(log_probs_NV[known].gather(1, tgt_N[known, None]).sum())
        tokens += int(known.sum())
    return nats / max(1, tokens)


def _padding(material: Material) -> float:
    """How much a loud logit of the padding id changes, and its gradient; both are nothing."""
    subject, step = biased(material), material.step()
    quiet = measure(subject, step)
    with torch.no_grad():
        for model in (subject.student, subject.teacher):
            if model is not None:
                model.softmax_bias[-1] = LOUD
                model.softmax_weight[-1] = 1.0
    loud = measure(subject, step)
    gradient = loud.gradient
    rows = [gradient[f"student.{name}"][-1] for name in ("softmax_bias", "softmax_weight", "tgt_embedding.weight")]
    return worst(loud.distance(quiet), *(float(row.abs().max()) for row in rows))
