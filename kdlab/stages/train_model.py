"""Trains one model: a teacher, a student alone, or a student against a teacher and its pseudo-labels.

Result: a model folder (weights, config, tokenizer, card) with metrics.csv and objective.md (the objective's card)
beside it, and init.json where the start is reported (what came from the teacher).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdlab import files, runtime
from kdlab.errors import UserError, memory_may_run_out

if TYPE_CHECKING:
    from kdlab.data.batching import StepStream
    from kdlab.data.labels import PseudoLabels
    from kdlab.data.prepared import PreparedCorpus
    from kdlab.models.transformer import Transformer
    from kdlab.objectives.objective import Objective
    from kdlab.teachers.cached import CachedTeacher
    from kdlab.teachers.frozen import FrozenTeacher
    from kdlab.training.callbacks import Validation

VERSION = 2


def run(out: Path, inputs: dict[str, Path], params: dict[str, Any], local: dict[str, Any]) -> dict[str, Any]:
    """Trains to params["max_steps"] or an early stop and leaves a model folder in `out`; see `train`.

    In this process, or in as many as the strategy names.
    """
    if "devices" in local["strategy"]:
        from kdlab.stages import train_ranks

        return train_ranks.run(out, inputs, params, local)
    return train(out, inputs, params, local)


@memory_may_run_out(
    "write trainer.microbatch_tokens (dropout will draw other units) or trainer.chunk_size lower, or "
    "trainer.recompute_layers=true; kdlab.budget says what a training needs"
)
def train(out: Path, inputs: dict[str, Path], params: dict[str, Any], local: dict[str, Any]) -> dict[str, Any]:
    """What one process does, alone or as one of several ranks, of which the first writes.

    Args:
        inputs: corpus; teacher (a model folder) if the objective compares with one or `init` starts from it; labels if
            the objective uses pseudo-labels; cache if the teacher was asked before; start (a model folder) if `init`
            goes on from it.
        params: model, init, objective, optim, trainer, max_steps, seed; mix and mix_by with labels; teacher_precision
            where it is not the student's; teacher_cache (its kind) with a cache; gold_share, pseudo_share, subset_seed
            where not all targets are used; label_tag and source_noise where there is one; only_labelled where no term
            reads gold.
        local: device, threads, microbatch_tokens, chunk_size, recompute_layers, checkpoint_every,
            log_every, strategy, loggers, name; run with loggers: the folder of the run, whose names and configuration
            they show.
    """
    import torch
    from hydra.utils import instantiate

    from kdlab.data.batching import GOLD_ALONE, StepStream
    from kdlab.data.labels import PseudoLabels
    from kdlab.data.mixing import Mixing
    from kdlab.data.noise import SourceNoise
    from kdlab.data.prepared import PreparedCorpus
    from kdlab.data.subset import Subset
    from kdlab.models.folder import read_config
    from kdlab.models.transformer import Transformer, num_parameters
    from kdlab.objectives.card import card
    from kdlab.stages import train_loggers
    from kdlab.stages.pseudo_label import refuse_few
    from kdlab.strategies import ranks
    from kdlab.training.callbacks import Progress, Resume, Steps, Validation
    from kdlab.training.fit import fit
    from kdlab.training.metrics import MetricsCsv
    from kdlab.training.module import StudentModule
    from kdlab.training.optim import Optim

    device, strategy, is_first = runtime.device(local["device"]), instantiate(local["strategy"]), ranks.rank() == 0
    share: dict[str, Any] = {"rank": ranks.rank(), "num_ranks": ranks.num_ranks()}
    runtime.start_torch(local["threads"])
    torch.manual_seed(params["seed"])
    trainer, corpus = params["trainer"], PreparedCorpus.open(inputs["corpus"])
    tokenizer = corpus.tokenizer
    student = Transformer(instantiate(_sized(params["model"], corpus)))
    student.recompute_layers = local["recompute_layers"]
    _fits_vocabulary(student, corpus)
    report = _start(student, params, inputs, corpus)
    if report and is_first:
        files.write_json(out / "init.json", report)
    objective = instantiate(params["objective"], _convert_="all")  # plain dicts of dataclasses
    labels = PseudoLabels.open(inputs["labels"], corpus.train) if "labels" in inputs else None
    if labels is not None and "min_labelled" in local:  # they may have been made when fewer were enough
        refuse_few(files.read_json(inputs["labels"] / "report.json"), local["min_labelled"])
    _fits_positions(student, corpus, labels, "the student", tag=int("label_tag" in params))
    teacher_precision = params.get("teacher_precision", trainer["precision"])
    teacher: FrozenTeacher | CachedTeacher | None = None
    if objective.needs_teacher and "cache" in inputs:
        teacher = _cached_teacher(inputs, corpus, labels, objective, device, teacher_precision)
    elif objective.needs_teacher:
        at_first = device if strategy.teacher == "replicated" else "cpu"  # else it must fit where it will not stay
        teacher = frozen_teacher(inputs["teacher"], corpus, labels, at_first, teacher_precision)
    module = StudentModule(
        student,
        objective,
        teacher,
        Optim(**params["optim"]),
        max_steps=params["max_steps"],
        chunk_size=local["chunk_size"],
        strategy=strategy,
    )

    stream = StepStream(
        corpus.train,
        labels=labels,
        mixing=Mixing(params["mix"], params["mix_by"]) if labels is not None else GOLD_ALONE,
        reads_gold=not params.get("only_labelled", False),
        subset=Subset(params.get("gold_share", 1.0), params.get("pseudo_share", 1.0), params.get("subset_seed", 1)),
        seed=params["seed"],
        tokens_per_step=trainer["tokens_per_step"],
        microbatch_tokens=local["microbatch_tokens"],
        noise=SourceNoise(**params["source_noise"]) if "source_noise" in params else None,
        tag_id=tokenizer.src_symbol_id(params["label_tag"]) if "label_tag" in params else None,
        src_pad_id=tokenizer.src_pad_id,
        tgt_pad_id=tokenizer.tgt_pad_id,
        **share,
    )
    _tell_rows(stream)
    loader, scratch = Steps(stream), out / "scratch"
    scratch.mkdir(parents=True, exist_ok=True)
    metrics = MetricsCsv(out / "metrics.csv")
    validation = Validation(
        scratch / "snapshots",
        lambda: _validation_batches(corpus, local["microbatch_tokens"], share),
        _translation_score(corpus, device) if trainer["select"] == "bleu" else None,
        every=trainer["val_every"],
        select={"bleu": "bleu", "loss": "nll"}[trainer["select"]],
        average=trainer["average"],
        patience=trainer["patience"],
    )
    guide = read_config(inputs["teacher"]) if objective.needs_teacher else None
    text = card(
        objective,
        student.config.to_dict(),
        guide["architecture"] if guide else None,
        precision=trainer["precision"],
        teacher_precision=teacher_precision + (", read from a cache" if "cache" in inputs else ""),
        teacher_objective=guide["card"].get("objective") if guide else None,
    )
    if is_first:
        files.write_text(out / "objective.md", text)
    runtime.say(f"{num_parameters(student):,} parameters; {objective.formula()}")
    with train_loggers.opened(local if is_first else {**local, "loggers": []}, scratch) as loggers:
        steps = fit(
            module,
            loader,
            max_steps=params["max_steps"],
            precision=trainer["precision"],
            strategy=strategy.trainer_arguments(device),
            loggers=[metrics, *loggers],
            callbacks=[
                validation,
                Progress(local["name"], validation, every=local["log_every"]),
                Resume(scratch / "last.ckpt", loader, metrics, validation, every=local["checkpoint_every"]),
            ],
            checkpoint=scratch / "last.ckpt",
        )
        if not is_first:
            return {}
        summary = _finish(out, student, validation, corpus, steps, params, objective.formula())
        train_loggers.tell_result(loggers, out, inputs, corpus, metrics, summary)
    return summary


def _finish(
    out: Path,
    student: Transformer,
    validation: Validation,
    corpus: PreparedCorpus,
    steps: int,
    params: dict[str, Any],
    objective: str,
) -> dict[str, Any]:
    """Puts the averaged weights into a model folder."""
    from kdlab.models.folder import save_model
    from kdlab.models.transformer import Transformer, num_parameters

    student = Transformer(student.config)  # the one that was trained may be spread over ranks
    student.load_state_dict(validation.averaged(), strict=True)
    scores = dict(validation.history)
    summary = {
        "parameters": num_parameters(student),
        "steps": steps,
        "averaged_steps": sorted(validation.chosen()),
        "best_validation": {params["trainer"]["select"]: abs(max(scores.values()))},
    }
    save_model(out, student, card={**summary, "objective": objective, "tokenizer": corpus.tokenizer.fingerprint})
    corpus.tokenizer.save(out / "tokenizer")
    return summary


def _start(
    student: Transformer, params: dict[str, Any], inputs: dict[str, Path], corpus: PreparedCorpus
) -> dict[str, Any] | None:
    """Gives the student its first weights, from a teacher or a folder where `init` takes one; what `init` reports."""
    import inspect

    from hydra.utils import instantiate

    from kdlab.data.tokenizer import Tokenizer
    from kdlab.models.folder import load_model

    start = instantiate(params["init"], _partial_=True, _convert_="all")
    given: dict[str, Any] = {}
    if "teacher" in inspect.signature(start).parameters:
        theirs = Tokenizer.open(inputs["teacher"] / "tokenizer").fingerprint
        if theirs != corpus.tokenizer.fingerprint:
            raise UserError(
                f"the teacher's vocabulary ({theirs}) is not the corpus's ({corpus.tokenizer.fingerprint}), but the "
                "student would take over its embeddings, a row per token; choose init=random, or prepare the corpus "
                "with the teacher's own: data.tokenizer.path=<teacher folder>/tokenizer"
            )
        given["teacher"] = load_model(inputs["teacher"])
    if "folder" in inspect.signature(start).parameters:
        given["folder"] = inputs["start"]
    report: dict[str, Any] | None = start(student, seed=params["seed"], **given)
    return report


def frozen_teacher(
    folder: Path, corpus: PreparedCorpus, labels: PseudoLabels | None, device: str, precision: str
) -> FrozenTeacher:
    """A frozen teacher, refused unless it speaks the corpus's vocabulary: word-level KD compares token by token."""
    from kdlab.data.tokenizer import Tokenizer
    from kdlab.data.vocabulary import refuse_another_vocabulary
    from kdlab.models.folder import load_model
    from kdlab.teachers.frozen import FrozenTeacher

    refuse_another_vocabulary(Tokenizer.open(folder / "tokenizer"), corpus.tokenizer)
    model = load_model(folder)
    _fits_positions(model, corpus, labels, "the teacher")
    return FrozenTeacher(model, device=device, precision=precision)


def _sized(model: dict[str, Any], corpus: PreparedCorpus) -> dict[str, Any]:
    """An architecture; the sizes that it leaves open, because it adopts a vocabulary, are those of the tokenizer."""
    sizes = {"src_vocab_size": corpus.tokenizer.src_vocab_size, "tgt_vocab_size": corpus.tokenizer.tgt_vocab_size}
    return {**model, **{name: size for name, size in sizes.items() if name in model and model[name] is None}}


def _cached_teacher(
    inputs: dict[str, Path],
    corpus: PreparedCorpus,
    labels: PseudoLabels | None,
    objective: Objective,
    device: str,
    precision: str,
) -> CachedTeacher:
    """What the teacher said when it was asked, refused unless all is as it was then; only its head is needed."""
    from kdlab.data.identity import identities
    from kdlab.models.folder import WEIGHTS, load_model
    from kdlab.teachers.cached import CachedTeacher

    teacher = CachedTeacher.open(
        inputs["cache"],
        teacher=files.sha256_file(inputs["teacher"] / WEIGHTS),
        tokenizer=corpus.tokenizer.fingerprint,
        rows=identities(corpus, labels),
        head=load_model(inputs["teacher"]).head(),
        device=device,
        precision=precision,
    )
    terms = [weighted.term for weighted in objective.hidden_terms.values()]
    others = [t for t in terms if (getattr(t, "stack", None), getattr(t, "layers", None)) != ("decoder", "last")]
    if others or objective.counts_padding:
        raise UserError(
            "a teacher cache holds what the teacher's head and its decoder's last layer say at real positions, but the "
            "objective compares other layers or padding too, which are not there; choose teacher_cache=none"
        )
    if terms and not teacher.has_last_layer:
        raise UserError(
            f"the teacher cache in {inputs['cache']} was made without the decoder's last layer, which the objective "
            "compares; make it anew with last_layer, or choose teacher_cache=none"
        )
    return teacher


def _fits_vocabulary(student: Transformer, corpus: PreparedCorpus) -> None:
    built = (student.config.src_vocab_size, student.config.tgt_vocab_size)
    needed = (corpus.tokenizer.src_vocab_size, corpus.tokenizer.tgt_vocab_size)
    if built != needed:
        raise UserError(
            f"the model has vocabularies of {built[0]} and {built[1]}, the corpus's tokenizer {needed[0]} and "
            f"{needed[1]}, but every token needs its own row; write vocab_size={needed[0]}"
        )
    if student.config.tie == "all" and not corpus.tokenizer.joint:
        raise UserError(
            "the model has tie=all, but the corpus's tokenizer has a vocabulary for each language, so one matrix would "
            "serve different words; write tie=decoder_softmax"
        )


def _fits_positions(
    model: Transformer, corpus: PreparedCorpus, labels: PseudoLabels | None, who: str, *, tag: int = 0
) -> None:
    """Refuses what would fail in the middle of training, or after it: a line longer than the model's positions."""
    lengths = {
        "training source": corpus.train.src_len.max() + tag,
        "training target": corpus.train.tgt_len.max(),
        "validation source": corpus.valid.src_len.max(),
        "validation target": corpus.valid.tgt_len.max(),
        "pseudo-label": labels.longest if labels is not None else 0,
    }
    for name in corpus.tests:
        lengths[f"source of {name}"] = max(map(len, corpus.tokenizer.encode_src(corpus.test(name).src)))
    limit = model.config.max_positions
    for what, longest in lengths.items():
        if longest > limit:
            raise UserError(
                f"the longest {what} has {longest} tokens, but {who} was built for at most {limit} (max_positions), so "
                "it would fail on it later; lower data.cleaning.max_tokens, take the line out of the set, or raise "
                "max_positions"
            )


def _tell_rows(stream: StepStream) -> None:
    """Says which rows are trained on, where these are not all of the corpus, and what became of `mix`."""
    gold, label = stream.usable
    pseudo = gold & False if label is None else label
    used, mix = int((gold | pseudo).sum()), stream.mixing.mix
    if not used:
        return
    if used < len(stream.rows):
        runtime.say(
            f"{used:,} of {len(stream.rows):,} training rows are used, the others have no target here: "
            f"{gold.sum():,} gold targets and {pseudo.sum():,} pseudo-labels"
        )
    share = ((gold & ~pseudo).sum() + mix * (gold & pseudo).sum()) / used
    if label is not None and stream.mixing.mix_by == "sampling" and abs(share - mix) > 0.02:
        runtime.say(
            f"mix={mix:g}, but about {share:.1%} of an epoch is gold: a row that has one target alone brings that one; "
            "with mix_by=weights the loss has the shares of mix whatever the numbers"
        )


def _validation_batches(corpus: PreparedCorpus, microbatch_tokens: int, share: dict[str, Any]) -> Any:
    from kdlab.data.batching import evaluation_batches

    return evaluation_batches(
        corpus.valid,
        microbatch_tokens=microbatch_tokens,
        src_pad_id=corpus.tokenizer.src_pad_id,
        tgt_pad_id=corpus.tokenizer.tgt_pad_id,
        **share,
    )


def _translation_score(corpus: PreparedCorpus, device: str) -> Any:
    """Scores a model by greedy translation of the validation set, of which every rank does a part: {"bleu": ...}."""
    from kdlab.decoding.beam import BeamConfig
    from kdlab.decoding.translate import translate
    from kdlab.evaluation.sacrebleu import score
    from kdlab.strategies import ranks

    src_lines, references = corpus.valid_text
    src_ids = corpus.tokenizer.encode_src(src_lines)
    greedy = BeamConfig(beam_size=1, length_penalty=1.0)

    def bleu(model: Any) -> dict[str, float]:
        mine = src_ids[ranks.rank() :: ranks.num_ranks()]
        found = translate(model, mine, greedy, batch_tokens=8192, progress=None)
        shares = ranks.of_all([corpus.tokenizer.decode_tgt(nbest[0].ids) for nbest in found])
        hypotheses = [""] * len(src_ids)
        for rank, share in enumerate(shares):
            hypotheses[rank :: len(shares)] = share
        return {"bleu": score(hypotheses, [references], metrics=["bleu"])["bleu"]["score"]}

    return bleu
