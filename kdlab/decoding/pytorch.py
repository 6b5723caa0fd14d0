"""Our own transformers as an engine: beam search by one or several models with one vocabulary."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from kdlab.data.tokenizer import Tokenizer
from kdlab.decoding.beam import BeamConfig, Hypothesis, beam_search
from kdlab.decoding.ensemble import Ensemble
from kdlab.decoding.text import Batch, TextEngine
from kdlab.models.transformer import Transformer


def pytorch_engine(
    models: Sequence[Transformer], tokenizer: Tokenizer, config: BeamConfig, num_parameters: int
) -> TextEngine:
    """An engine from models that are ready to decode (translate.for_decoding)."""
    asked = Ensemble(models)

    def search(batches: Iterable[Batch]) -> Iterator[list[list[Hypothesis]]]:
        for _, src_ids in batches:
            yield beam_search(asked, src_ids, config)

    return TextEngine(tokenizer, search, asked.max_positions, num_parameters)
