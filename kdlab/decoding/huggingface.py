"""A Hugging Face sequence-to-sequence model with its own tokenizer as an engine: text in, text out.

The search is transformers' `generate`, held to what ours does (huggingface_rules.py). Of the model's own settings only
what its output would be wrong without is kept: the tokens that it must begin with or never says. Length penalties, beam
sizes, repetition rules and the like are label_decode's.
    score = log_prob / num_tokens ** length_penalty,   over the tokens after the start and the target language's code
log_prob is computed anew from the finished hypotheses, as the model says it: nothing forbidden, EOS counted, at
temperature 1 also where tokens were drawn.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdlab import files
from kdlab.decoding.beam import BeamConfig
from kdlab.decoding.engine import Candidate, Sources
from kdlab.decoding.huggingface_folder import forbidden_ids, prompt_ids, read_model, read_tokenizer
from kdlab.decoding.huggingface_rules import Rules
from kdlab.decoding.sampling import Sampling, sample_keys
from kdlab.errors import UserError, import_extra

CARD = "huggingface.json"  # beside the model: src_code, tgt_code, prefix
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
NOTHING = Candidate("", None, 0.0, 0.0, 1, finished=True)  # of a line without characters: EOS alone
LOGITS_AT_ONCE = 2**26  # numbers: hypotheses are scored in parts, or the logits of a batch would take gigabytes


@dataclass(frozen=True)
class HuggingFaceEngine:
    """A model, its tokenizer, and how to search."""

    model: Any
    tokenizer: Any
    prefix: str  # put before every source, e.g. "translate German to English: "
    prompt: list[int]  # what every target begins with: the start token, the code of the target language
    eos_ids: list[int]
    forbidden_V: Tensor
    config: BeamConfig
    sampling: Sampling | None = None

    @classmethod
    def open(
        cls, folder: Path, config: BeamConfig, *, precision: str, device: str, sampling: Sampling | None = None
    ) -> HuggingFaceEngine:
        """From a folder that stage fetch_huggingface has made.

        Args:
            sampling: `config.beam_size` hypotheses are drawn; without it they are searched.
        Raises: UserError where the folder holds no such model, or its tokenizer does not know a language.
        """
        if precision not in DTYPES:
            raise UserError(
                f"precision is {precision!r}, but a Hugging Face teacher has no such layers; write fp32 or bf16"
            )
        transformers = import_extra("transformers", "hf")
        transformers.utils.logging.disable_progress_bar()
        card = files.read_json(folder / CARD)
        tokenizer = read_tokenizer(transformers, folder)
        model = read_model(transformers, folder, DTYPES[precision])
        theirs = model.generation_config
        start = theirs.decoder_start_token_id
        if start is None or theirs.eos_token_id is None or tokenizer.pad_token_id is None:
            raise UserError(
                f"{folder} names no start of a target, no end or no padding (decoder_start_token_id="
                f"{start}, eos_token_id={theirs.eos_token_id}, pad_token_id={tokenizer.pad_token_id}), so a search "
                "can neither begin nor end; name a sequence-to-sequence model with its generation_config.json"
            )
        never = [ids for ids in theirs.bad_words_ids or () if len(ids) > 1]
        model.generation_config = transformers.GenerationConfig(
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=theirs.eos_token_id,
            decoder_start_token_id=start,
            bad_words_ids=never or None,
        )
        return cls(
            model=model.to(device).eval(),
            tokenizer=tokenizer,
            prefix=card["prefix"] or "",
            prompt=prompt_ids(tokenizer, card, start, theirs.forced_bos_token_id),
            eos_ids=torch.atleast_1d(torch.tensor(theirs.eos_token_id)).tolist(),
            forbidden_V=forbidden_ids(theirs, tokenizer, model.get_output_embeddings().weight.shape[0]).to(device),
            config=config,
            sampling=sampling,
        )

    @property
    def fingerprint(self) -> None:
        """None: its tokenizer is none of ours."""

    @property
    def num_parameters(self) -> int:
        """Of the model."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def max_positions(self) -> int | None:
        """The longest source or target that the model has positions for; None where they are relative."""
        found: int | None = getattr(self.model.config, "max_position_embeddings", None)
        return found

    def encode(self, lines: list[str]) -> list[list[int]]:
        """As Engine.encode; a special token in a line is text, where their tokenizer can take it as such."""
        texts = [self.prefix + line for line in lines]
        found: list[list[int]] = self.tokenizer(texts, split_special_tokens=True, verbose=False)["input_ids"]
        return found

    def decode(self, batches: Iterable[Sources]) -> Iterator[list[list[Candidate]]]:
        """As Engine.decode; a line without characters gets one empty candidate and is not searched."""
        for sources in batches:
            found = [[] if text.strip() else [NOTHING] for text in sources.text]
            encoded = self.encode(sources.text) if sources.ids is None else sources.ids
            some = [
                at
                for at, (text, ids) in enumerate(zip(sources.text, encoded, strict=True))
                if text.strip() and (self.max_positions is None or len(ids) <= self.max_positions)
            ]
            if some:
                searched = self._search([encoded[at] for at in some], [sources.row_id[at] for at in some])
                for at, candidates in zip(some, searched, strict=True):
                    found[at] = candidates
            yield found

    @torch.inference_mode()
    def _search(self, src_ids: list[list[int]], row_ids: list[int]) -> list[list[Candidate]]:
        from transformers import LogitsProcessorList
        from transformers.modeling_outputs import BaseModelOutput

        config = self.config
        beams, samples = (config.beam_size, 1) if self.sampling is None else (1, config.beam_size)
        # What is cut off is made to end in one more step, which reads the prompt and all its tokens.
        most = 10**9 if self.max_positions is None else self.max_positions - len(self.prompt)
        limits = [config.max_length(len(ids), most) for ids in src_ids for _ in range(samples)]
        device = self.model.device
        padded = self.tokenizer.pad({"input_ids": src_ids}, padding_side="right", return_tensors="pt").to(device)
        hidden = self.model.get_encoder()(**padded).last_hidden_state.repeat_interleave(samples, dim=0)
        mask = padded["attention_mask"].repeat_interleave(samples, dim=0)
        keys_R = None
        if self.sampling is not None:
            keys_R = sample_keys(self.sampling.seed, torch.tensor(row_ids, device=device), samples).flatten()
        rules = Rules(self.forbidden_V, self.eos_ids, len(self.prompt), limits, self.sampling, keys_R)
        made = self.model.generate(
            encoder_outputs=BaseModelOutput(last_hidden_state=hidden),
            attention_mask=mask,
            decoder_input_ids=torch.tensor([self.prompt], device=device).expand(len(hidden), -1),
            do_sample=False,  # draws are made by the rules
            num_beams=beams,
            num_return_sequences=beams,
            max_new_tokens=max(limits) + 1,
            logits_processor=LogitsProcessorList([rules]),
            **({"early_stopping": True, "length_penalty": config.length_penalty} if beams > 1 else {}),
        )
        ended = [_until_eos(ids[len(self.prompt) :], self.eos_ids) for ids in made.tolist()]
        hypotheses = [ids[: limits[at // beams]] for at, ids in enumerate(ended)]  # EOS last, or cut off
        kept = [
            self._kept(hypotheses, range(start, start + config.beam_size))
            for start in range(0, len(hypotheses), config.beam_size)
        ]
        rows = [row for sentence in kept for row in sentence]
        states = torch.tensor(rows, device=device) // beams
        scored = [hypotheses[row] for row in rows]
        log_probs = dict(zip(rows, self._log_probs(rules, scored, hidden, mask, states), strict=True))
        candidates = ([self._candidate(hypotheses[row], log_probs[row]) for row in sentence] for sentence in kept)
        return [
            sorted(found, key=lambda candidate: (not candidate.finished, -candidate.score))[: config.n_best]
            for found in candidates
        ]

    def _kept(self, hypotheses: list[list[int]], rows: range) -> list[int]:
        """Those of a sentence that may be wanted: of a search, which brings the best first, only what has ended, but
        all where nothing has (what is cut off is in no order)."""
        found = [row for row in rows if hypotheses[row]]
        if self.sampling is not None:
            return found
        return [row for row in found if hypotheses[row][-1] in self.eos_ids][: self.config.n_best] or found

    def _log_probs(
        self, rules: Rules, hypotheses: list[list[int]], hidden: Tensor, mask: Tensor, states: Tensor
    ) -> list[float]:
        """In nats, of every hypothesis; `states` are their rows of encoder states."""
        from transformers.modeling_outputs import BaseModelOutput

        found: list[float] = []
        longest = max(map(len, hypotheses), default=0)
        rows = max(1, LOGITS_AT_ONCE // (len(self.forbidden_V) * (longest + len(self.prompt))))
        for start in range(0, len(hypotheses), rows):
            part = hypotheses[start : start + rows]
            tgt = torch.full((len(part), longest), self.tokenizer.pad_token_id)
            for row, ids in enumerate(part):
                tgt[row, : len(ids)] = torch.tensor(ids)
            tgt = tgt.to(hidden.device)
            prompt = torch.tensor([self.prompt], device=hidden.device).expand(len(part), -1)
            source = states[start : start + rows]
            logits = self.model(
                encoder_outputs=BaseModelOutput(last_hidden_state=hidden[source]),
                attention_mask=mask[source],
                decoder_input_ids=torch.cat([prompt, tgt[:, :-1]], dim=1),
                use_cache=False,
            ).logits[:, len(self.prompt) - 1 :]
            log_probs = torch.cat([rules.log_probs(logits[:, :1], first=True), rules.log_probs(logits[:, 1:])], dim=1)
            each = log_probs.gather(-1, tgt[..., None]).squeeze(-1)
            found += [values[: len(ids)].sum().item() for values, ids in zip(each.double(), part, strict=True)]
        return found

    def _candidate(self, ids: list[int], log_prob: float) -> Candidate:
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        score = log_prob / len(ids) ** self.config.length_penalty
        return Candidate(text, None, score, log_prob, len(ids), ids[-1] in self.eos_ids)


def _until_eos(ids: list[int], eos_ids: list[int]) -> list[int]:
    """The hypothesis with its EOS; nothing where it has none (a beam that never was)."""
    end = next((at for at, token in enumerate(ids) if token in eos_ids), -1)
    return ids[: end + 1]
