"""A start from a teacher: some of its layers, and everything that is not in a layer."""

from __future__ import annotations

from typing import Any

import torch

from kdlab import runtime
from kdlab.errors import UserError
from kdlab.models.init import random_init
from kdlab.models.layer_rules import STACKS, Rule, layers, problems
from kdlab.models.transformer import Transformer


@torch.no_grad()
def layer_skip(model: Transformer, seed: int, teacher: Transformer, *, encoder: Rule, decoder: Rule) -> dict[str, Any]:
    """Copies embeddings, head, final norms and the chosen layers of a teacher of the same width into a model.

    Layer i starts as layer `layers(rule, N, n)[i]` of the teacher: all matrices, biases and norms of it, as they are.
    What the teacher does not have (a bias of the softmax) starts as `random_init` makes it. Nothing is frozen, and with
    all of the teacher's layers the model is the teacher. Source: Sanh et al. 2019 (DistilBERT), section 2.

    Args:
        encoder, decoder: a rule of layer_rules.RULES, or for every layer the teacher's that it starts from.
    Returns: the report: layers by stack, and where every tensor of the model comes from.
    Raises: UserError where the two do not fit.
    """
    rules = {"encoder": encoder, "decoder": decoder}
    if found := problems(rules, teacher.config.to_dict(), model.config.to_dict()):
        raise UserError("; ".join(found))
    depths = {stack: (len(getattr(teacher, stack)), len(getattr(model, stack))) for stack in STACKS}
    chosen = {stack: layers(rules[stack], *depths[stack]) for stack in STACKS}
    random_init(model, seed)
    theirs, copied, random = teacher.state_dict(), {}, []
    for name, value in model.state_dict().items():
        source = _source(name, chosen)
        if source in theirs:
            value.copy_(theirs[source])
            copied[name] = source
        else:
            random.append(name)
    described = ", ".join(f"{stack} {chosen[stack]} of {depths[stack][0]}" for stack in STACKS)
    runtime.say(f"start from the teacher's layers: {described}; {len(copied)} tensors copied, {len(random)} random")
    return {
        "layers": {stack: {"of": depths[stack][0], "chosen": chosen[stack]} for stack in STACKS},
        "num_tensors": len(copied) + len(random),
        "copied": copied,
        "random": random,
    }


def _source(name: str, chosen: dict[str, list[int]]) -> str:
    """The teacher's name of a tensor: another layer's number, else the same."""
    stack, _, rest = name.partition(".")
    if stack not in chosen:
        return name
    layer, _, inner = rest.partition(".")
    return f"{stack}.{chosen[stack][int(layer)]}.{inner}"
