"""Every training of a plan with what is known of it beforehand: budget prints it, sweep warns by it. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kdlab import files, targets, teacher_checks
from kdlab.artifacts.stage import Step, plan_keys
from kdlab.artifacts.store import Store
from kdlab.errors import UserError
from kdlab.strategies.trainings import Training


@dataclass(frozen=True)
class Planned:
    """A training of the plan, with what is known of it."""

    name: str
    training: Training
    max_steps: int


def trainings(cfg: Any, plan: Sequence[Step], store: Store) -> list[Planned]:
    """Every training of the plan. Raises: UserError where a teacher's architecture is not known yet."""
    keys = plan_keys(plan)
    corpus = (store.manifest("prepare_corpus", keys["corpus"]) or {}).get("summary", {}).get("train", {})
    longest = max((corpus.get(f"longest_{side}_len", 0) for side in ("src", "tgt")), default=0)
    found = []
    for step in plan:
        if step.stage != "train_model":
            continue
        architecture, params = dict(step.params["model"]), step.params
        compares = any(targets.needs_teacher(t["term"]["_target_"]) for t in params["objective"]["terms"].values())
        adopts = architecture["src_vocab_size"] is None
        teacher = _teacher(cfg, plan, keys, store) if compares or adopts else None
        if adopts:
            architecture |= {name: (teacher or {})[name] for name in ("src_vocab_size", "tgt_vocab_size")}
        training = Training.of_step(
            params,
            step.local,
            architecture=architecture,
            teacher=teacher if compares else None,
            longest=longest or cfg.data.cleaning.max_tokens,
        )
        found.append(Planned(step.name, training, params["max_steps"]))
    return found


def _teacher(cfg: Any, plan: Sequence[Step], keys: dict[str, str], store: Store) -> dict[str, Any]:
    """The architecture of the plan's teacher."""
    (step,) = (step for step in plan if step.name == "teacher")
    if store.manifest(step.stage, keys[step.name]):
        return dict(files.read_json(store.folder(step.stage, keys[step.name]) / "config.json")["architecture"])
    known = teacher_checks.architecture(cfg)
    if known is None:
        raise UserError(
            f"the architecture of teacher.path={cfg.teacher.path} is not known before the model is converted, so its "
            "memory is not either; run python -m kdlab.run with the same overrides and until=teacher first"
        )
    return known
