"""What single terms of an objective want: their units, layers and widths, a weight for their temperature.

Called by contradictions.py; torch-free like it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from kdlab import targets, teacher_checks
from kdlab.objectives import layer_pairs


def one_term(cfg: DictConfig, names: dict[str, str]) -> Iterator[str]:
    """What single terms of either objective want, beyond the range of a value."""
    for objective in ("objective", "baseline_objective"):
        for name, term in cfg[objective].terms.items():
            path, counts_padding = f"{objective}.terms.{name}", bool(flags(term).get("counts_padding", False))
            if term.per == "position" and not counts_padding:
                yield f"{path}.per=position counts padding, which this term never sees; write {path}.per=tgt_token"
            if term.per != "position" and counts_padding:
                yield f"{path}.per={term.per} but this term sums over padding too; write {path}.per=position"
            inner = term.term.get("weight")
            if inner is not None and inner != term.weight:
                yield (
                    f"{path}.term.weight={inner:g} but {path}.weight={term.weight:g}: this term needs to know its own "
                    "weight; set the dial weight_kd, which both refer to"
                )
            if term.get("mixed", False) and term.on == "all":
                yield (
                    f"{path}.mixed=true with on=all, but the mixture is of gold and pseudo-labels, and a term on all "
                    f"rows would get the weight of one of them; write {path}.mixed=false, or on=gold or on=pseudo"
                )
            if term.per == "tgt_token" and term.term.get("stack") == "encoder":
                yield f"{path}.per=tgt_token but it sums over encoder positions; write {path}.per=src_token"
            weights = term.term.get("weight_at")
            if weights is not None and not _is_table(weights):
                yield f"{path}.term.weight_at must be pairs [temperature, factor], got {weights}; write e.g. [[1, 2]]"
            elif weights is not None and term.term.temperature not in [pair[0] for pair in weights]:
                yield (
                    f"temperature={term.term.temperature:g} has no weight in {path}.term.weight_at; choose one of "
                    f"{', '.join(f'{pair[0]:g}' for pair in weights)}, or objective=word_kd, which needs no table"
                )


def hidden_states(cfg: DictConfig, names: dict[str, str]) -> Iterator[str]:
    """Layers and widths of terms that compare hidden states, where the teacher's are known."""
    active = {name: term for name, term in cfg.objective.terms.items() if term.weight > 0}
    hidden = {name: term.term for name, term in active.items() if targets.compares_layers(term.term._target_)}
    if hidden and any(flags(term).get("counts_padding", False) for term in active.values()):
        yield f"a term counts padding, where {', '.join(hidden)} knows no hidden states; leave one of them out"
    teacher = teacher_checks.architecture(cfg)
    for name, term in hidden.items():
        path, stack, layers = f"objective.terms.{name}.term", term.get("stack", "decoder"), term.get("layers", "last")
        plain = OmegaConf.to_container(layers) if OmegaConf.is_config(layers) else layers
        depths = (model.get(f"num_{stack}_layers") for model in (cfg.student, teacher or {}))
        if problem := layer_pairs.problem(plain, *depths):
            yield f"{path}.{problem}"
        if not teacher or "d_model" not in teacher or "d_model" not in cfg.student:
            continue
        widths = cfg.student.d_model, teacher["d_model"]
        if widths[0] != widths[1] and not term.get("projection", False):
            yield (
                f"objective.terms.{name} compares hidden states, but the student's width is {widths[0]} and the "
                f"teacher's {widths[1]}; write {path}.projection=true, or choose a student of the teacher's width"
            )


def flags(term: DictConfig) -> Mapping[str, Any]:
    """The plain attributes of a term's class, read from its source."""
    return targets.signature(term.term._target_).flags


def _is_table(value: Any) -> bool:
    """Whether it is a list of pairs of numbers."""
    return isinstance(value, ListConfig) and all(
        isinstance(pair, ListConfig) and len(pair) == 2 and all(isinstance(number, int | float) for number in pair)
        for pair in value
    )
