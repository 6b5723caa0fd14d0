"""A model folder for bench_decode.py whose outputs end by themselves, each near a length of its own.

Weights are random. Such a model lets every engine drop finished sentences as it does in earnest. Its output embedding
of EOS is fitted by least squares so that the logit of EOS rises with the position and passes those of other tokens near
the wanted length; everything else is as random as before.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from pathlib import Path

import torch

from kdlab.data.tokenizer import Tokenizer
from kdlab.models.folder import save_model
from kdlab.models.init import random_init
from kdlab.models.transformer import Transformer, TransformerConfig

RISE = 2.0  # of the logit of EOS at each position
LONGEST = 72  # positions that the fit looks at


def words(number: int) -> list[str]:
    """Different made-up words."""
    rng = random.Random(1)
    syllables = [a + b for a in "bdfghklmnprstvwz" for b in "aeiou"]
    found: dict[str, None] = {}
    while len(found) < number:
        found["".join(rng.choices(syllables, k=rng.choice((1, 2, 3, 4))))] = None
    return list(found)


def text(num_lines: int, num_words: list[int]) -> list[str]:
    """Lines of made-up words, frequent and rare ones; the lengths in words in turn."""
    rng, lexicon = random.Random(2), words(30_000)
    summed = list(itertools.accumulate(1 / (rank + 200) for rank in range(len(lexicon))))
    sizes = itertools.islice(itertools.cycle(num_words), num_lines)
    return [" ".join(rng.choices(lexicon, cum_weights=summed, k=size)) for size in sizes]


@torch.no_grad()
def make(folder: Path, vocab_size: int, d_model: int, num_words: list[int], wanted: Callable[[int], int]) -> list[str]:
    """Writes the folder; source lines, one of each number of words, the most tokens first.

    Args:
        wanted: length of the output by tokens of the source, EOS counted in both.
    """
    training = text(6_000, num_words)
    tokenizer = Tokenizer.train(training, training, vocab_size=vocab_size, model="bpe")
    lines = sorted(text(len(num_words), num_words), key=lambda line: -len(tokenizer.encode_src([line])[0]))
    src_ids = tokenizer.encode_src(lines)
    sizes = (tokenizer.src_vocab_size, tokenizer.tgt_vocab_size)
    model = Transformer(
        TransformerConfig(*sizes, 6, 2, d_model, 4 * d_model, 8, tie="decoder_softmax", dropout=0.1, max_positions=256)
    )
    random_init(model, seed=1)
    model.eval()
    random_ids = torch.Generator().manual_seed(4)
    features, logits = [], []
    for ids in src_ids:
        tgt_in = torch.randint(2, sizes[1] - 1, (2, LONGEST), generator=random_ids)
        mask = torch.ones(1, len(ids), dtype=torch.bool)
        found = model(torch.tensor([ids]), mask, tgt_in, torch.zeros(2, dtype=torch.long)).decoder_ND
        past = torch.arange(1, LONGEST + 1).repeat(2) - wanted(len(ids))
        features.append(found)
        logits.append((4.0 + RISE * past).clamp(-8.0, 20.0))
    table = model.tgt_embedding.weight
    x, y = torch.cat(features).double(), torch.cat(logits).double()
    table[0] = torch.linalg.solve(x.T @ x + torch.eye(d_model, dtype=torch.float64), x.T @ y).float()
    save_model(folder, model, {"tokenizer": tokenizer.fingerprint})
    tokenizer.save(folder / "tokenizer")
    return lines
