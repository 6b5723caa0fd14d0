"""Peak live bytes inside a word-level KD loss: kdlab's reduce against two full logit tensors, vocabulary 32,000.

The plain way runs on the meta device: every tensor has its size there, and nobody needs 17 GB. Prints a JSON line a
figure and exits with 1 beyond the limits.
"""

from __future__ import annotations

import json
import sys
import weakref
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kdlab import runtime, schema
from kdlab.objectives.nll import Nll
from kdlab.objectives.objective import WeightedTerm
from kdlab.objectives.reduce import Side, reduce
from kdlab.objectives.word_kd import WordKD
from kdlab.types import Head, Targets

V, D, D_TEACHER, T = 32_000, 256, 512, 32
CHUNK_SIZE = OmegaConf.load(schema.config_dir() / "trainer/cpu.yaml").chunk_size
AT_MOST, WITHIN = 1 / 8, 0.05
COPIES = {f"aten::{name}" for name in ("index", "index_select", "clone", "_to_copy")}


class LiveBytes(TorchDispatchMode):
    """Counts the storages that are made inside it; `peak` is the most that lived at once.

    Left out: copies of hidden states, and whatever has shape and type of a parameter or of hidden states: its gradient.
    """

    def __init__(self, parameters: list[Tensor], hidden: list[Tensor]):
        super().__init__()
        self.live = self.peak = 0
        self._gradients = {(x.shape, x.dtype) for x in (*parameters, *hidden)}
        self._hidden = {h.untyped_storage()._cdata for h in hidden}
        self._kept = list(hidden)  # an address means something only while its storage lives

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        result = func(*args, **(kwargs or {}))
        made = {x.untyped_storage()._cdata: x for x in tree_leaves(result) if isinstance(x, Tensor)}
        for address, tensor in made.items():
            if address in given or (tensor.shape, tensor.dtype) in self._gradients:
                continue
            if func._schema.name in COPIES and given & self._hidden:
                self._hidden.add(address)
                self._kept.append(tensor)
                continue
            storage = tensor.untyped_storage()
            self.live += storage.nbytes()
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._drop, storage.nbytes())
        return result

    def _drop(self, size: int) -> None:
        self.live -= size


def model(num_tokens: int, width: int, vocab_size: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states (N, D), weight and bias of the head, all to be given gradients."""
    torch.manual_seed(width)
    hidden_ND = torch.randn(num_tokens, width, device=device)
    weight_VD = torch.randn(vocab_size, width, device=device) * width**-0.5
    bias_V = torch.zeros(vocab_size, device=device)
    return hidden_ND.requires_grad_(), weight_VD.requires_grad_(), bias_V.requires_grad_()


def plain(num_tokens: int, vocab_size: int = V, device: str = "meta") -> int:
    """Peak bytes of the loss of kd_step_process.run_hf, backward to the hidden states included."""
    hidden, weight, bias = model(num_tokens, D, vocab_size, device)
    teacher, teacher_weight, teacher_bias = model(num_tokens, D_TEACHER, vocab_size, device)
    tgt_N = torch.zeros(num_tokens, dtype=torch.int64, device=device)
    with LiveBytes([weight, bias], [hidden, teacher]) as count:
        with torch.no_grad():
            teacher_logits = F.linear(teacher, teacher_weight) + teacher_bias
        logits = F.linear(hidden, weight) + bias
        nll = F.cross_entropy(logits.view(-1, vocab_size), tgt_N)
        log_q, p = torch.log_softmax(logits, -1), torch.softmax(teacher_logits, -1)
        (nll + F.kl_div(log_q, p, reduction="none").sum() / num_tokens).backward()
    return count.peak


def ours(num_tokens: int, precision: str = "fp32", vocab_size: int = V, chunk_size: int = CHUNK_SIZE) -> int:
    """Peak bytes of reduce, backward to the hidden states included."""
    hidden, weight, bias = model(num_tokens, D, vocab_size, "cpu")
    teacher, teacher_weight, teacher_bias = (x.detach() for x in model(num_tokens, D_TEACHER, vocab_size, "cpu"))
    rows = num_tokens // T
    tgt_RT = torch.randint(vocab_size - 1, (rows, T))
    gold_R = torch.zeros(rows, dtype=torch.bool)
    targets = Targets(torch.arange(rows), gold_R, tgt_RT, tgt_RT, torch.ones(rows, T, dtype=torch.bool))
    terms = {
        "nll": WeightedTerm(1.0, "gold", "tgt_token", Nll()),
        "kd": WeightedTerm(1.0, "gold", "tgt_token", WordKD(temperature=1.0)),
    }
    student_side = Side(hidden, Head(weight, bias, vocab_size - 1))
    teacher_side = Side(teacher, Head(teacher_weight, teacher_bias, vocab_size - 1))
    scales = dict.fromkeys(terms, 1.0 / num_tokens)
    with (
        torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"),
        LiveBytes([weight, bias], [hidden, teacher]) as count,
    ):
        reduce(terms, scales, targets, student_side, teacher_side, chunk_size=chunk_size).loss.backward()
    return count.peak


def main() -> None:
    """Prints the peaks, the share at the most tokens and the growth."""
    runtime.start_torch(1)
    tokens = (1024, 4096, 16384)
    plain_bytes = {n: plain(n) for n in tokens}
    holds = True
    for precision in ("fp32", "bf16"):
        our_bytes = {n: ours(n, precision) for n in tokens}
        share, growth = (
            our_bytes[tokens[-1]] / plain_bytes[tokens[-1]],
            our_bytes[tokens[-1]] / our_bytes[tokens[0]] - 1,
        )
        holds = holds and share <= AT_MOST and abs(growth) <= WITHIN
        for n in tokens:
            figures = {"ours MiB": round(our_bytes[n] / 2**20), "plain fp32 MiB": round(plain_bytes[n] / 2**20)}
            print(json.dumps({"precision": precision, "tokens": n, "chunk_size": CHUNK_SIZE, **figures}))
        limits = {"at most": AT_MOST, "growth from 1,024 tokens": round(growth, 3), "within": WITHIN}
        print(json.dumps({"precision": precision, "share at 16,384 tokens": round(share, 4), **limits}))
    sys.exit(not holds)


if __name__ == "__main__":
    main()
