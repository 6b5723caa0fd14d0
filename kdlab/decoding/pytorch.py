"""Our own transformers as an engine: beam search or sampling by one or several models with one vocabulary."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from kdlab.data.tokenizer import Tokenizer
from kdlab.decoding.beam import BeamConfig, Hypothesis, beam_search
from kdlab.decoding.ensemble import Ensemble
from kdlab.decoding.sampling import Sampling, sample
from kdlab.decoding.text import Batch, TextEngine
from kdlab.models.transformer import Transformer


def pytorch_engine(
    models: Sequence[Transformer],
    tokenizer: Tokenizer,
    config: BeamConfig,
    num_parameters: int,
    sampling: Sampling | None = None,
) -> TextEngine:
    """An engine from models that are ready to decode (translate.for_decoding); without `sampling` it searches."""
    asked = Ensemble(models)

    def search(batches: Iterable[Batch]) -> Iterator[list[list[Hypothesis]]]:
        for row_id, src_ids in batches:
            if sampling is None:
                yield beam_search(asked, src_ids, config)
            else:
                yield sample(asked, row_id, src_ids, config, sampling)

    return TextEngine(tokenizer, search, asked.max_positions, num_parameters)
