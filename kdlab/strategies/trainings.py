"""What is known of a training before it runs, as plain numbers; read from the step of a plan. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any

from kdlab.errors import UserError
from kdlab.models.activations import Microbatch
from kdlab.models.shapes import Shapes, parameter_shapes

# Real tokens over padded tokens of a microbatch: the least that batching promises.
REAL_SHARE = 0.87
# Tensors of chunk_size x vocabulary that live at once when the loss has one of these terms, at temperature 1 (measured,
# tests/unit/test_footprint.py): logits, their gradient and the student's probabilities; of a teacher logits,
# probabilities and a difference. A term that is not here may have no closed form, and is taken as the largest.
LOGIT_BUFFERS = {
    **{"Nll": 3, "TemperedNll": 3},
    **{"WordKD": 6, "HintonDoubleAlpha": 6, "LogitsMse": 5, "ReverseKL": 7, "SymmetricKL": 7},
    **{"TotalVariation": 9, "Ancestor": 9, "JensenShannon": 13},
}
LARGEST = 13
HIDDEN = ("HiddenCosine", "HiddenMse")
TRANSFORMER = "kdlab.models.transformer.TransformerConfig"


@dataclass(frozen=True)
class HiddenPair:
    """A layer of the student and one of the teacher that a hidden term compares, of one stack."""

    stack: str
    projected: bool


@dataclass(frozen=True)
class Training:
    """All that the arithmetic of footprint.py needs to know.

    Args:
        architecture: of the student, the arguments of TransformerConfig; teacher: of the one beside it, if any.
        cache: kind of the teacher's cache: of a hidden one only the teacher's head is here, of top_k nothing.
        longest: tokens of the longest sentence: what a microbatch may consist of.
        targets_per_source: 2 where each source brings its gold target and its pseudo-label.
        logit_buffers: tensors of chunk_size x vocabulary that the loss holds at once.
        num_gradients: terms whose gradients validation compares, of the whole student each.
        recompute_layers: a layer keeps its input alone and is computed again in the backward pass.
    """

    architecture: Mapping[str, Any]
    teacher: Mapping[str, Any] | None
    cache: str
    precision: str
    teacher_precision: str
    tokens_per_step: int
    microbatch_tokens: int
    chunk_size: int
    longest: int
    targets_per_source: int
    logit_buffers: int
    num_gradients: int = 1
    hidden: tuple[HiddenPair, ...] = ()
    on_gpu: bool = True
    recompute_layers: bool = False

    @classmethod
    def of_step(
        cls,
        params: Mapping[str, Any],
        local: Mapping[str, Any],
        *,
        architecture: Mapping[str, Any],
        teacher: Mapping[str, Any] | None,
        longest: int | None,
    ) -> Training:
        """From the params and local settings of a train_model step.

        Args:
            architecture: params["model"], its vocabulary filled in.
            teacher: the architecture of the teacher that its objective compares with.
            longest: `data.cleaning.max_tokens`; None: what the model has positions for.
        """
        target = params["model"].get("_target_")
        if target != TRANSFORMER:
            raise UserError(
                f"the model is {target}, whose parameters nobody has written down, so its memory is not known; write a "
                f"model of {TRANSFORMER}"
            )
        nodes = params["objective"]["terms"].values()
        terms = [node["term"] for node in nodes]
        trainer, cache = params["trainer"], params.get("teacher_cache", "none")
        most = architecture.get("max_positions", 1024)
        return cls(
            architecture=architecture,
            teacher=teacher,
            cache=cache,
            precision=trainer["precision"],
            teacher_precision=params.get("teacher_precision", trainer["precision"]),
            tokens_per_step=trainer["tokens_per_step"],
            microbatch_tokens=local["microbatch_tokens"],
            chunk_size=local["chunk_size"],
            longest=min(longest or most, most),
            targets_per_source=2 if params.get("mix_by") == "weights" else 1,
            logit_buffers=max(map(_logit_buffers, terms), default=0) - (cache == "top_k"),
            num_gradients=sum(node["on"] != "pseudo" for node in nodes),
            hidden=tuple(pair for term in terms for pair in _pairs(term, architecture)),
            on_gpu=local["device"] != "cpu",
            recompute_layers=local["recompute_layers"],
        )

    @property
    def shapes(self) -> Shapes:
        """Of all that is trained: the student, and the maps of hidden states to the teacher's width."""
        maps = [pair for pair in self.hidden if pair.projected]
        width = (self.teacher or {}).get("d_model", 0), self.architecture["d_model"]
        return parameter_shapes(self.architecture) | {f"projections.{i}.weight": width for i in range(len(maps))}

    def num_microbatches(self, num_devices: int) -> int:
        """Of a step on each device."""
        return max(1, ceil(self._positions(num_devices) / self.microbatch_tokens))

    def microbatch(self, num_devices: int) -> Microbatch:
        """The largest one of a step."""
        return self._cut(self._positions(num_devices) / self.num_microbatches(num_devices))

    def validation_microbatch(self) -> Microbatch:
        """The largest one of a validation set, whatever a step has."""
        return self._cut(self.microbatch_tokens)

    def _cut(self, positions: float) -> Microbatch:
        """Sentences of the greatest length, all positions real."""
        tgt = max(1.0, positions * self.targets_per_source / (self.targets_per_source + 1))
        rows = max(1, int(tgt / self.longest))
        length = ceil(tgt / rows)
        return Microbatch(ceil(rows / self.targets_per_source), length, rows, length)

    def _positions(self, num_devices: int) -> float:
        """Of a step on a device: source and target, padded."""
        return self.tokens_per_step / num_devices * (1 + 1 / self.targets_per_source) / REAL_SHARE


def _name(term: Mapping[str, Any]) -> str:
    return str(term["_target_"]).rpartition(".")[2]


def _logit_buffers(term: Mapping[str, Any]) -> int:
    """At another temperature than 1, logits over the temperature are one tensor more."""
    if _name(term) in HIDDEN:
        return 0
    return LOGIT_BUFFERS.get(_name(term), LARGEST) + (term.get("temperature", 1.0) != 1.0)


def _pairs(term: Mapping[str, Any], architecture: Mapping[str, Any]) -> list[HiddenPair]:
    """The pairs of layers of a hidden term: objectives/layer_pairs.py."""
    if _name(term) not in HIDDEN:
        return []
    stack, layers = term.get("stack", "decoder"), term.get("layers", "last")
    number = {"last": 1, "spread": architecture[f"num_{stack}_layers"]}.get(layers) if isinstance(layers, str) else None
    return [HiddenPair(stack, bool(term.get("projection")))] * (len(layers) if number is None else number)
