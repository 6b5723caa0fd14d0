"""What training makes of gold targets and pseudo-labels: settings of it that cannot work together.

Called by contradictions.py; torch-free like it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, OmegaConf

from kdlab import targets


def source_only(cfg: DictConfig, names: dict[str, str]) -> Iterator[str]:
    """Problems of text without targets: sets that are scored have none of it, and somebody must give it targets."""
    for part in ("valid", "tests"):
        for path, share in _shares(cfg.data[part], f"data.{part}"):
            if share > 0:
                yield (
                    f"{path} brings lines without a target, on which nothing can be measured; source-only text belongs "
                    "to data.train"
                )
    shares = [share for _, share in _shares(cfg.data.train, "data.train")]
    if not shares or min(shares) < 1:
        return
    text, recipe = "no line of data.train has a target", names.get("recipe", cfg.recipe._target_)
    if "pseudo_label" not in cfg.recipe.steps:
        yield f"{text} and recipe={recipe} makes no pseudo-labels, so it can train on nothing; choose recipe=seq_kd"
        return
    if cfg.teacher.source == "train":
        yield f"{text}, from which a teacher could learn; choose teacher=folder or teacher=marian, or add such lines"
    if cfg.data.tokenizer.path is None:
        yield f"{text}, from which a vocabulary could be learnt; write data.tokenizer.path=<folder of a tokenizer>"
    if cfg.baseline:
        yield f"{text}, from which the student alone could learn; write baseline=false, or add such lines"
    if cfg.mix > 0:
        yield f"mix={cfg.mix} draws gold rows but {text}; write mix=0"


def _shares(node: Any, path: str) -> Iterator[tuple[str, float]]:
    """Of each source the share of its lines that have no target; sources that cannot be built are left out."""
    nodes = [(path, node)] if "_target_" in node else targets.nodes(node, path)
    for where, found in nodes:
        if not OmegaConf.missing_keys(found) and not any(targets.node_problems(where, found)):
            plain = OmegaConf.to_container(found, resolve=True)
            assert isinstance(plain, dict)
            yield where, float(getattr(targets.build(plain), "source_only", 0.0))
