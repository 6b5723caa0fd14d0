"""How well a model that translates back finds a source again in its translation: cross-entropy by teacher forcing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from kdlab.data.batching import Lengths, collate, split_step
from kdlab.data.tokenizer import Tokenizer
from kdlab.decoding.translator import Translator
from kdlab.models.transformer import Transformer
from kdlab.types import Batch

BATCH_TOKENS = 8192  # padded, of both sides; decides the last bits of scores
CHUNK_POSITIONS = 1024  # target positions whose logits are there at once


@final
@dataclass(frozen=True)
class ReverseModel:
    """A frozen fp32 model from the labels' language into the sources', with its own tokenizer."""

    model: Transformer
    tokenizer: Tokenizer

    @classmethod
    def open(cls, folder: Path, *, device: str) -> ReverseModel:
        """From a model folder. Raises: UserError where model and tokenizer do not belong together."""
        found = Translator.open(folder, precision="fp32", device=device)
        return cls(found.model, found.tokenizer)

    def nll_per_token(self, labels: Sequence[str], sources: Sequence[str]) -> NDArray[np.float64]:
        """For every pair: -log p(source | label) / tokens of the source, EOS counted.

        Infinite where a side is longer than the model's positions: nothing speaks for such a pair.
        Units: nats per token of the source, as this model's tokenizer cuts it.
        Source: Junczys-Dowmunt 2018 (conditional cross-entropy, normalised by length).
        """
        pairs = _Pairs(self.tokenizer.encode_src(list(labels)), self.tokenizer.encode_tgt(list(sources)))
        found = np.full(len(labels), np.inf)
        fits = np.flatnonzero(np.maximum(pairs.src_len, pairs.tgt_len) <= self.model.config.max_positions)
        lengths = Lengths.of_gold(pairs.src_len, pairs.tgt_len)
        src_pad_id, tgt_pad_id = self.tokenizer.src_pad_id, self.tokenizer.tgt_pad_id
        for index in split_step(lengths, fits, BATCH_TOKENS) if len(fits) else []:
            batch = collate(pairs, index, src_pad_id=src_pad_id, tgt_pad_id=tgt_pad_id)
            found[index] = self._nll(batch.to(self.model.positions.device)) / pairs.tgt_len[index]
        return found

    @torch.no_grad()
    def _nll(self, batch: Batch) -> NDArray[np.float64]:
        """Summed over the tokens of each target row."""
        targets = batch.targets
        said = self.model(batch.src_BS, batch.src_mask_BS, targets.tgt_in_RT, targets.source_R, targets.mask_RT)
        tgt_N = targets.tgt_out_RT[targets.mask_RT]
        pad_id = self.model.head().pad_id  # the last id: no token, so it gets no probability
        nll_N = torch.cat(
            [
                F.cross_entropy(self.model.logits(hidden)[:, :pad_id].float(), tgt, reduction="none")
                for hidden, tgt in zip(
                    said.decoder_ND.split(CHUNK_POSITIONS), tgt_N.split(CHUNK_POSITIONS), strict=True
                )
            ]
        )
        row_N = torch.arange(len(targets.mask_RT), device=nll_N.device).repeat_interleave(targets.mask_RT.sum(1))
        sums_R = torch.zeros(len(targets.mask_RT), dtype=torch.float64, device=nll_N.device)
        return sums_R.index_add(0, row_N, nll_N.double()).cpu().numpy()


@dataclass(frozen=True)
class _Pairs:
    """Token ids of both sides with the face of data.prepared.Rows that batches are made of."""

    src: list[list[int]]
    tgt: list[list[int]]

    @property
    def row_id(self) -> NDArray[np.int64]:
        return np.arange(len(self.src))

    @property
    def src_len(self) -> NDArray[np.int64]:
        return np.fromiter(map(len, self.src), np.int64, len(self.src))

    @property
    def tgt_len(self) -> NDArray[np.int64]:
        return np.fromiter(map(len, self.tgt), np.int64, len(self.tgt))

    def src_ids(self, index: NDArray[np.int64]) -> list[NDArray[np.int32]]:
        return [np.array(self.src[at], np.int32) for at in index]

    def tgt_ids(self, index: NDArray[np.int64]) -> list[NDArray[np.int32]]:
        return [np.array(self.tgt[at], np.int32) for at in index]
