"""One contestant of bench_kd_step.py, in a process of its own: kdlab, or the plain way on Hugging Face's Marian.

    python tests/kd_step_process.py '{"way": "kdlab", "task": "kd", "precision": "bf16", "teacher_precision": "bf16"}'

Both ways do whole optimizer steps on the same batch: forward, backward, clipping, Adam. kdlab goes through
`training.fit`, Lightning and all; the plain way is a bare loop. Prints a JSON line: CPU-seconds of every step after the
first, peak RSS, target tokens and parameters.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from types import SimpleNamespace
from typing import Any

V = 8000
SHAPES = {  # layers of each side, d_model, d_ff, heads: the students of conf/student/, and the teacher
    "slim_3x3": (3, 3, 256, 1024, 4),
    "wide_1x1": (1, 1, 1024, 4096, 16),
    "teacher": (6, 2, 512, 2048, 8),
}


@dataclass(frozen=True)
class Entry:
    """What a process runs. `batch`: bucketed = sorted by target length; mixed = unsorted, lengths 3 to 114."""

    way: str  # hf or kdlab
    task: str  # train or kd
    shape: str = "slim_3x3"
    batch: str = "bucketed"
    precision: str = "fp32"
    teacher_precision: str = "fp32"
    cache: str | None = None  # of the teacher, kdlab alone: hidden or top_k
    steps: int = 3  # that count; one more warms up


class Rows(SimpleNamespace):
    """What batching needs to know of a prepared corpus."""

    def __len__(self) -> int:
        return len(self.row_id)


def rows(batch: str) -> Rows:
    """The step's sentences: lengths are quantiles, so that no seed makes them; tokens are random.

    bucketed: 64 sentences, 2,026 target tokens (padding 1 %), 2,073 source tokens (padding 56 %).
    mixed: 93 sentences, 2,045 target tokens (padding 81 %), 2,081 source tokens (padding 80 %).
    """
    import numpy as np

    random = np.random.default_rng(3)

    def lognormal(count: int, median: float, sigma: float, longest: int) -> Any:
        quantiles = [NormalDist().inv_cdf((i + 0.5) / count) for i in range(count)]
        lengths = np.round(median * np.exp(sigma * np.array(quantiles))).astype(np.int32)
        lengths[-1] = longest
        return lengths

    if batch == "bucketed":
        tgt = np.array([31] * 22 + [32] * 42, dtype=np.int32)
        src = random.permutation(lognormal(64, 30.4, 0.36, 74))
    else:
        order = random.permutation(93)
        near = np.argsort(np.arange(93) + random.normal(0, 8, 93))  # sources about as long as their targets
        tgt = lognormal(93, 16.9, 0.73, 114)[order]
        src = lognormal(93, 17.2, 0.73, 114)[near][order]

    def ids(lengths: Any) -> Any:
        text = [np.append(random.integers(2, V - 1, n - 1), 0) for n in lengths]
        return lambda index: [text[i] for i in index]

    return Rows(row_id=np.arange(len(tgt)), src_len=src, tgt_len=tgt, src_ids=ids(src), tgt_ids=ids(tgt))


def write_cache(folder: Path, source: Rows, kind: str, d_model: int) -> None:
    """A cache of random numbers in bf16, as stages/cache_teacher.py leaves one of its gold targets: k = 8."""
    import numpy as np
    import torch

    from kdlab import files
    from kdlab.teachers.cache_files import CARD, Column
    from kdlab.types import TopK

    positions = int(source.tgt_len.sum())
    if kind == "hidden":
        columns, values = {"hidden": Column("bf16", d_model)}, {"hidden": torch.randn(positions, d_model)}
    else:
        known = TopK.of(torch.randn(positions, V - 1), 8, (1.0,))
        columns = {"ids": Column("uint16", 8), "log_probs": Column("bf16", 8), "log_tails": Column("bf16", 1)}
        values = {"ids": known.ids_NK, "log_probs": known.log_probs_NK, "log_tails": known.log_tails_NI}
    for name, column in columns.items():
        column.reserve(folder / f"gold.{name}", positions)
        column.write(folder / f"gold.{name}", 0, column.pack(values[name]))
    rows = np.zeros(len(source), [("row_id", "<i8"), ("tgt_len", "<i4")])
    rows["row_id"], rows["tgt_len"] = source.row_id, source.tgt_len
    np.save(folder / "gold.rows.npy", rows)
    kept = {name: {"dtype": column.dtype, "width": column.width} for name, column in columns.items()}
    files.write_json(folder / CARD, {"columns": kept, "temperatures": [1.0], "parts": ["gold"]})


def run_kdlab(entry: Entry) -> tuple[list[float], int]:
    """CPU-seconds of each step as training does it, its split into microbatches included; parameters."""
    import numpy as np
    from lightning.pytorch.callbacks import Callback
    from omegaconf import OmegaConf

    from kdlab import runtime, schema
    from kdlab.data.batching import BEGINNING, Epoch, Lengths, StepStream
    from kdlab.models.init import random_init
    from kdlab.models.transformer import Transformer, TransformerConfig, num_parameters
    from kdlab.objectives.nll import Nll
    from kdlab.objectives.objective import Objective, WeightedTerm
    from kdlab.objectives.word_kd import WordKD
    from kdlab.strategies.single import Single
    from kdlab.teachers.cached import CachedTeacher
    from kdlab.teachers.frozen import FrozenTeacher
    from kdlab.training.callbacks import Progress
    from kdlab.training.fit import fit
    from kdlab.training.metrics import MetricsCsv
    from kdlab.training.module import StudentModule
    from kdlab.training.optim import Optim

    def model(shape: str, **settings: Any) -> Transformer:
        encoder, decoder, d_model, d_ff, heads = SHAPES[shape]
        made = Transformer(TransformerConfig(V, V, encoder, decoder, d_model, d_ff, heads, dropout=0.1, **settings))
        random_init(made, seed=1)
        return made

    runtime.start_torch(1)
    source = rows(entry.batch)
    stream = StepStream(source, 1, tokens_per_step=2048, microbatch_tokens=8192, src_pad_id=V - 1, tgt_pad_id=V - 1)
    gold = np.ones(len(source), dtype=bool)
    lengths = Lengths.of_gold(source.src_len, source.tgt_len)
    step = stream.microbatches(Epoch(gold, ~gold, lengths, [np.arange(len(source))]), 0)

    terms = {"nll": WeightedTerm(1.0, "gold", "tgt_token", Nll())}
    if entry.task == "kd":
        terms["kd"] = WeightedTerm(1.0, "gold", "tgt_token", WordKD(temperature=1.0))
    folder = Path(tempfile.mkdtemp(prefix="kdlab-bench-"))
    teacher: Any = None
    if entry.cache:
        head = model("teacher").head()
        write_cache(folder, source, entry.cache, head.weight_VD.shape[1])
        teacher = CachedTeacher(folder, head, precision=entry.teacher_precision)
    elif entry.task == "kd":
        teacher = FrozenTeacher(model("teacher"), precision=entry.teacher_precision)
    student = model(entry.shape, tie="decoder_softmax", softmax_bias=True)
    optim = Optim(1e-4, (0.9, 0.999), 1e-8, 0.0, clip_norm=1.0, schedule="constant", warmup_steps=0)
    chunk_size = OmegaConf.load(schema.config_dir() / "trainer/cpu.yaml").chunk_size
    module = StudentModule(student, Objective(terms), teacher, optim, max_steps=entry.steps + 1, chunk_size=chunk_size)

    class Clock(Callback):
        at: list[float] = []  # noqa: RUF012

        def on_train_batch_end(self, *_: Any) -> None:
            self.at.append(time.process_time())

    class Same:
        def __iter__(self) -> Any:
            while True:
                yield BEGINNING, step

    fit(
        module,
        Same(),  # type: ignore[arg-type]
        max_steps=entry.steps + 1,
        precision=entry.precision,
        strategy=Single().trainer_arguments("cpu"),
        loggers=[MetricsCsv(folder / "metrics.csv")],
        callbacks=[Progress("bench", every=20), Clock()],
        checkpoint=folder / "none.ckpt",
    )
    shutil.rmtree(folder)
    return list(np.diff(Clock.at)), num_parameters(student)


def run_hf(entry: Entry) -> tuple[list[float], int]:
    """CPU-seconds of each step of a bare loop: two full logit tensors, two full softmaxes; parameters."""
    import numpy as np
    import torch
    import torch.nn.functional as F
    from transformers import MarianConfig, MarianMTModel

    from kdlab.data.batching import collate

    def model(shape: str, **settings: Any) -> Any:
        encoder, decoder, d_model, d_ff, heads = SHAPES[shape]
        return MarianMTModel(
            MarianConfig(
                vocab_size=V,
                encoder_layers=encoder,
                decoder_layers=decoder,
                d_model=d_model,
                encoder_ffn_dim=d_ff,
                decoder_ffn_dim=d_ff,
                encoder_attention_heads=heads,
                decoder_attention_heads=heads,
                activation_function="relu",
                dropout=0.1,
                attention_dropout=0.0,
                activation_dropout=0.0,
                scale_embedding=True,
                max_position_embeddings=1024,
                pad_token_id=V - 1,
                eos_token_id=0,
                bos_token_id=None,
                decoder_start_token_id=V - 1,
                forced_eos_token_id=None,
                **settings,
            )
        )

    torch.set_num_threads(1)
    torch.manual_seed(1)
    source = rows(entry.batch)
    batch = collate(source, np.arange(len(source)), src_pad_id=V - 1, tgt_pad_id=V - 1)
    mask_RT, tgt_out_RT = batch.targets.mask_RT, batch.targets.tgt_out_RT
    given = {
        "input_ids": batch.src_BS,
        "attention_mask": batch.src_mask_BS.long(),
        "decoder_attention_mask": mask_RT.long(),
        "labels": tgt_out_RT.masked_fill(~mask_RT, -100),
    }
    student = model(entry.shape, share_encoder_decoder_embeddings=False).train()
    teacher = model("teacher").eval() if entry.task == "kd" else None
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-4, fused=True)
    at = []
    for _ in range(entry.steps + 1):
        with torch.no_grad():
            teacher_logits = None if teacher is None else teacher(**given).logits
        out = student(**given)
        loss = out.loss
        if teacher_logits is not None:
            log_q, p = torch.log_softmax(out.logits, -1), torch.softmax(teacher_logits, -1)
            kl_RT = F.kl_div(log_q, p, reduction="none").sum(-1)
            loss = loss + (kl_RT * mask_RT).sum() / mask_RT.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
        at.append(time.process_time())
    return list(np.diff(at)), sum(p.numel() for p in student.parameters() if p.requires_grad)


def main() -> None:
    """Runs the entry of the command line."""
    os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")
    entry = Entry(**json.loads(sys.argv[1]))
    import lightning  # noqa: F401  both ways hold the same libraries in memory
    from transformers import MarianMTModel  # noqa: F401

    import kdlab.training.fit  # noqa: F401

    seconds, parameters = {"hf": run_hf, "kdlab": run_kdlab}[entry.way](entry)
    rss_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    found = {"cpu_s": [round(s, 4) for s in seconds], "rss_mib": round(rss_mib), "parameters": parameters}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
