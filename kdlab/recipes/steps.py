"""The steps that recipes are made of: each takes the resolved configuration and says what is hashed and what is local.

Hashed is what changes results; devices, threads, sizes of microbatches, paths and loggers are not.
"""

from __future__ import annotations

from kdlab import files, targets
from kdlab.artifacts.stage import Step
from kdlab.recipes.settings import (
    Settings,
    active,
    adopts_vocabulary,
    compares_layers,
    device,
    folder_hashes,
    hash_cache,
    hashed_trainer,
    label_tag,
    training_local,
    uses_cache,
    uses_labels,
)
from kdlab.stages import cache_teacher, evaluate_model, prepare_corpus, train_model

PRETRAINED = {"_target_": "kdlab.models.pretrained.pretrained"}
CACHE_LOCAL = ("device", "threads", "microbatch_tokens", "chunk_size")


def corpus(settings: Settings) -> Step:
    """The prepared corpus, known by the content of its files and not by their paths."""
    data = settings["data"]
    sources = {part: data[part] for part in ("train", "valid", "tests")}
    tokenizer = dict(data["tokenizer"])
    given, inputs = tokenizer.pop("path", None), {}
    if adopts_vocabulary(settings):
        given, tokenizer, inputs = None, {}, {"teacher": "teacher"}
    with files.remembered_hashes(hash_cache(settings)):
        identities = prepare_corpus.identities(sources)
        if given:
            hashes = folder_hashes(given, "data.tokenizer.path", "a folder with a tokenizer")
            tokenizer = {"vocab_size": tokenizer["vocab_size"], "sha256": hashes}
    params = {name: data[name] for name in ("src_lang", "tgt_lang", "cleaning", "seed") if name in data}
    if tag := label_tag(settings):
        params["label_tag"] = tag
    return Step(
        name="corpus",
        stage="prepare_corpus",
        version=prepare_corpus.VERSION,
        params={**params, "tokenizer": tokenizer, "identities": identities},
        inputs=inputs,
        run=prepare_corpus.run,
        local={"sources": sources, "tokenizer_path": given, "threads": settings["trainer"]["threads"]},
    )


def teacher_cache(settings: Settings, *, labels: bool = False) -> list[Step]:
    """What the teacher says at every target, once for all temperatures and students, and for all objectives of token
    terms; those that compare its last layer share another. Nothing without a kd term, or with teacher_cache=none.
    `labels` as for `student`."""
    node, objective = settings["teacher_cache"], active(settings["objective"])
    if not uses_cache(settings, objective):
        return []
    inputs = {"corpus": "corpus", "teacher": "teacher"}
    if labels and uses_labels(objective):
        inputs["labels"] = "pseudo_label"
    precision = settings["trainer"]["teacher_precision"] or settings["trainer"]["precision"]
    temperatures = node["temperatures"] and sorted({1.0, *node["temperatures"]})  # validation measures at 1
    return [
        Step(
            name="cache_teacher",
            stage="cache_teacher",
            version=cache_teacher.VERSION,
            params={
                "kind": node["kind"],
                "dtype": node["dtype"] or ("fp32" if precision == "fp32" else "bf16"),
                "precision": precision,
                "top_k": node["top_k"],
                "temperatures": temperatures,
                **({"last_layer": True} if compares_layers(objective) else {}),
            },
            inputs=inputs,
            run=cache_teacher.run,
            local={name: settings["trainer"][name] for name in CACHE_LOCAL},
        )
    ]


def student(settings: Settings, *, name: str = "student", objective: str = "objective", labels: bool = False) -> Step:
    """A student under `settings[objective]`; the teacher is an input if a term or `init` needs it.

    Args:
        labels: whether the recipe makes pseudo-labels; they are an input if a term looks at them.
    """
    node = active(settings[objective])
    labels = labels and uses_labels(node)
    if labels:
        node = {"mix": settings["mix"], "mix_by": settings["mix_by"], **node}
    inputs, init = {"corpus": "corpus"}, settings["init"]
    if settings["pretrain_steps"]:
        inputs["start"], init = "pretrain", PRETRAINED
    starts_from_teacher = targets.signature(init["_target_"]).takes("teacher")
    compares = any(targets.needs_teacher(term["term"]["_target_"]) for term in node["terms"].values())
    if starts_from_teacher or compares:
        inputs["teacher"] = "teacher"
    if labels:
        inputs["labels"] = "pseudo_label"
    gold = any(term["on"] in ("gold", "all") for term in node["terms"].values())
    used = {"gold_share": gold, "pseudo_share": labels}
    shares = {share: settings[share] for share, is_used in used.items() if is_used and settings[share] != 1}
    cached = uses_cache(settings, node)
    if cached:
        inputs["cache"] = "cache_teacher"
    asks = compares and not (cached and settings["teacher_cache"]["kind"] == "top_k")  # whose products are made already
    precision, teacher_precision = (settings["trainer"][name] for name in ("precision", "teacher_precision"))
    own_precision = asks and teacher_precision not in (None, precision)
    return Step(
        name=name,
        stage="train_model",
        version=train_model.VERSION,
        params={
            "model": settings["student"],
            "init": init,
            "objective": node,
            "optim": settings["optim"],
            "trainer": hashed_trainer(settings),
            "max_steps": settings["max_steps"],
            "seed": settings["seed"],
            **({"mix": settings["mix"], "mix_by": settings["mix_by"]} if labels else {}),
            **({"label_tag": settings["label_tag"]} if labels and settings["label_tag"] else {}),
            **({"source_noise": settings["source_noise"]} if any(settings["source_noise"].values()) else {}),
            **({"only_labelled": True} if labels and not gold else {}),  # rows without label teach nothing
            **({**shares, "subset_seed": settings["subset_seed"]} if shares else {}),
            **({"teacher_precision": teacher_precision} if own_precision else {}),
            **({"teacher_cache": settings["teacher_cache"]["kind"]} if cached else {}),
        },
        inputs=inputs,
        run=train_model.run,
        local={**training_local(settings, name), **({"min_labelled": settings["min_labelled"]} if labels else {})},
    )


def pretrain(settings: Settings) -> list[Step]:
    """What every student then starts from: the student alone for `pretrain_steps`; nothing where that is 0."""
    if not settings["pretrain_steps"]:
        return []
    first = {**settings, "max_steps": settings["pretrain_steps"], "pretrain_steps": 0}
    return [student(first, name="pretrain", objective="baseline_objective")]


def baseline(settings: Settings) -> list[Step]:
    """The student alone beside a distilled one (`baseline: true`): everything the same, only the objective differs."""
    if not settings["baseline"]:
        return []
    alone = student(settings, name="baseline", objective="baseline_objective")
    return [alone, evaluate(settings, "evaluate_baseline", model="baseline")]


def evaluate(settings: Settings, name: str = "evaluate", *, model: str = "student") -> Step:
    """Translation of the test sets and its scores."""
    node = settings["evaluate"]
    return Step(
        name=name,
        stage="evaluate_model",
        version=evaluate_model.VERSION,
        params={
            "decode": settings["decode"],
            "metrics": sorted(node["metrics"]),
            "tests": sorted(settings["data"]["tests"] if node["tests"] is None else node["tests"]),
        },
        inputs={"corpus": "corpus", "model": model},
        run=evaluate_model.run,
        local=device(settings),
    )
