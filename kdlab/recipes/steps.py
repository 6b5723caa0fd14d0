"""The steps that recipes are made of: each takes the resolved configuration and says what is hashed and what is local.

Hashed is what changes results; devices, threads, sizes of microbatches, paths and loggers are not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from kdlab import files, targets
from kdlab.artifacts.stage import Step
from kdlab.errors import UserError
from kdlab.stages import (
    cache_teacher,
    convert_model,
    evaluate_model,
    fetch_model,
    prepare_corpus,
    pseudo_label,
    train_model,
)

TRAINER_HASHED = ("precision", "tokens_per_step", "val_every", "select", "average", "patience")
TRAINER_LOCAL = ("device", "threads", "microbatch_tokens", "chunk_size", "checkpoint_every", "log_every")
CACHE_LOCAL = ("device", "threads", "microbatch_tokens", "chunk_size")
OBJECTIVE = "kdlab.objectives.objective.Objective"
TERM = "kdlab.objectives.objective.WeightedTerm"
NLL = "kdlab.objectives.nll.Nll"
RANDOM = {"_target_": "kdlab.models.init.random_init"}

ADOPT = "teacher"  # of data.tokenizer.path

Settings = dict[str, Any]


def resolve(cfg: DictConfig) -> Settings:
    """The configuration as plain values."""
    settings = OmegaConf.to_container(cfg, resolve=True)
    if not isinstance(settings, dict):
        raise TypeError("a configuration is a mapping")
    found = {str(name): value for name, value in settings.items()}
    if adopts_vocabulary(found):  # how large it is shows when the corpus is there
        sizes = ("src_vocab_size", "tgt_vocab_size")
        found["student"] = {name: None if name in sizes else value for name, value in found["student"].items()}
    return found


def adopts_vocabulary(settings: Settings) -> bool:
    """Whether corpus and student take the teacher's vocabulary: `data.tokenizer.path=teacher`."""
    return settings["data"]["tokenizer"]["path"] == ADOPT


def corpus(settings: Settings) -> Step:
    """The prepared corpus, known by the content of its files and not by their paths."""
    data = settings["data"]
    sources = {part: data[part] for part in ("train", "valid", "tests")}
    tokenizer = dict(data["tokenizer"])
    given, inputs = tokenizer.pop("path", None), {}
    if adopts_vocabulary(settings):
        given, tokenizer, inputs = None, {}, {"teacher": "teacher"}
    with files.remembered_hashes(_hash_cache(settings)):
        identities = prepare_corpus.identities(sources)
        if given:
            hashes = _folder_hashes(given, "data.tokenizer.path", "a folder with a tokenizer")
            tokenizer = {"vocab_size": tokenizer["vocab_size"], "sha256": hashes}
    params = {name: data[name] for name in ("src_lang", "tgt_lang", "cleaning", "seed") if name in data}
    return Step(
        name="corpus",
        stage="prepare_corpus",
        version=prepare_corpus.VERSION,
        params={**params, "tokenizer": tokenizer, "identities": identities},
        inputs=inputs,
        run=prepare_corpus.run,
        local={"sources": sources, "tokenizer_path": given, "threads": settings["trainer"]["threads"]},
    )


def corpus_and_teacher(settings: Settings) -> list[Step]:
    """The prepared corpus, the teacher and its evaluation; a corpus that adopts the vocabulary comes second."""
    prepared, (made, evaluation) = corpus(settings), teacher(settings)
    return [made, prepared, evaluation] if adopts_vocabulary(settings) else [prepared, made, evaluation]


def teacher(settings: Settings) -> list[Step]:
    """The teacher, trained here or brought, and its evaluation."""
    node = settings["teacher"]
    if node["source"] == "train":
        made = Step(
            name="teacher",
            stage="train_model",
            version=train_model.VERSION,
            params={
                "model": node["model"],
                "init": RANDOM,  # `init` is the student's: a teacher has no teacher to start from
                "objective": _teacher_objective(node),
                "optim": node["optim"],
                "trainer": _hashed_trainer(settings),
                "max_steps": node["max_steps"],
                "seed": node["seed"],
            },
            inputs={"corpus": "corpus"},
            run=train_model.run,
            local=_training_local(settings, "teacher"),
        )
    elif node["source"] == "folder":
        with files.remembered_hashes(_hash_cache(settings)):
            hashes = _folder_hashes(node["path"], "teacher.path", "a model folder that kdlab has written")
        made = Step(
            name="teacher",
            stage="fetch_model",
            version=fetch_model.VERSION,
            params={"sha256": hashes},
            inputs={},
            run=fetch_model.run,
            local={"path": str(node["path"])},
        )
    elif node["source"] == "marian":
        made = Step(
            name="teacher",
            stage="convert_model",
            version=convert_model.VERSION,
            params=_marian(settings),
            inputs={},
            run=convert_model.run,
            local={"path": str(node["path"])},
        )
    else:
        raise UserError(
            f"teacher.source={node['source']!r}, but this recipe learns from a teacher; "
            "choose one, e.g. teacher=toy_2x2, or recipe=train_only"
        )
    return [made, evaluate(settings, "evaluate_teacher", model="teacher")]


def pseudo_labels(settings: Settings) -> list[Step]:
    """The teacher's translation of the training sources; nothing when no term of the objective looks at it."""
    if not uses_labels(settings["objective"]):
        return []
    decode = dict(settings["label_decode"])
    if decode["engine"] == "pytorch":
        del decode["engine"]  # keys are what they were before there was a second one
    return [
        Step(
            name="pseudo_label",
            stage="pseudo_label",
            version=pseudo_label.VERSION,
            params={"decode": decode},
            inputs={"corpus": "corpus", "teacher": "teacher"},
            run=pseudo_label.run,
            local={**_device(settings), "min_labelled": settings["min_labelled"]},
        )
    ]


def teacher_cache(settings: Settings, *, labels: bool = False) -> list[Step]:
    """What the teacher says at every target, once for all temperatures, objectives and students; nothing without a kd
    term, or with teacher_cache=none. `labels` as for `student`."""
    node, objective = settings["teacher_cache"], _active(settings["objective"])
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
    node = _active(settings[objective])
    labels = labels and uses_labels(node)
    if labels:
        node = {"mix": settings["mix"], "mix_by": settings["mix_by"], **node}
    inputs = {"corpus": "corpus"}
    starts_from_teacher = targets.signature(settings["init"]["_target_"]).takes("teacher")
    compares = any(targets.needs_teacher(term["term"]["_target_"]) for term in node["terms"].values())
    if starts_from_teacher or compares:
        inputs["teacher"] = "teacher"
    if labels:
        inputs["labels"] = "pseudo_label"
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
            "init": settings["init"],
            "objective": node,
            "optim": settings["optim"],
            "trainer": _hashed_trainer(settings),
            "max_steps": settings["max_steps"],
            "seed": settings["seed"],
            **({"mix": settings["mix"], "mix_by": settings["mix_by"]} if labels else {}),
            **({"teacher_precision": teacher_precision} if own_precision else {}),
            **({"teacher_cache": settings["teacher_cache"]["kind"]} if cached else {}),
        },
        inputs=inputs,
        run=train_model.run,
        local=_training_local(settings, name),
    )


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
        local=_device(settings),
    )


def uses_labels(objective: dict[str, Any]) -> bool:
    """Whether a term with weight looks at pseudo-label rows."""
    return any(term["on"] in ("pseudo", "all") for term in _active(objective)["terms"].values())


def uses_cache(settings: Settings, objective: dict[str, Any]) -> bool:
    """Whether a term with weight compares with a teacher whose answers are kept."""
    compares = any(targets.needs_teacher(term["term"]["_target_"]) for term in _active(objective)["terms"].values())
    return compares and settings["teacher_cache"]["kind"] != "none"


def _active(objective: dict[str, Any]) -> dict[str, Any]:
    # A term of weight zero is not computed, so it must not change the key either.
    terms = {
        name: {"_target_": TERM, **{field: value for field, value in term.items() if value is not None}}
        for name, term in objective["terms"].items()
        if term is not None and term["weight"] != 0
    }
    return {"_target_": OBJECTIVE, **objective, "terms": terms}


def _teacher_objective(node: dict[str, Any]) -> dict[str, Any]:
    # Not cfg.objective: a sweep over the student's weights must not train its teacher again.
    smoothing = node.get("label_smoothing") or 0.0
    term = {"_target_": NLL, "label_smoothing": smoothing}
    return _active({"terms": {"nll": {"weight": 1.0, "on": "gold", "per": "tgt_token", "term": term}}})


def _hashed_trainer(settings: Settings) -> dict[str, Any]:
    return {name: settings["trainer"][name] for name in TRAINER_HASHED}


def _training_local(settings: Settings, name: str) -> dict[str, Any]:
    loggers = [node for node in settings["logger"].values() if isinstance(node, dict) and "_target_" in node]
    local = {field: settings["trainer"][field] for field in TRAINER_LOCAL}
    return {**local, "strategy": settings["strategy"], "loggers": loggers, "name": name}


def _device(settings: Settings) -> dict[str, Any]:
    return {name: settings["trainer"][name] for name in ("device", "threads")}


def _marian(settings: Settings) -> dict[str, Any]:
    """A local folder by its content, a model of the hub by name and commit."""
    path, revision = settings["teacher"]["path"], settings["teacher"]["revision"]
    if not Path(path).is_dir():
        return {"hub": path, "revision": revision}
    places = [Path(path) / name for name in convert_model.FILES]
    with files.remembered_hashes(_hash_cache(settings)):
        return {"sha256": {place.name: files.sha256_file(place) for place in places if place.is_file()}}


def _hash_cache(settings: Settings) -> Path:
    return Path(settings["paths"]["store"]) / "hashes.json"


def _folder_hashes(folder: str | None, option: str, wanted: str) -> dict[str, str]:
    place = Path(folder) if folder else None
    if place is None or not place.is_dir():
        raise UserError(f"{option}={folder!r} is no folder, but its files are needed; write {option}=<{wanted}>")
    # what makes the model: not its card, its metrics or the manifest of the run that made it
    found = sorted(path for path in place.rglob("*") if path.is_file() and path.suffix not in (".md", ".csv", ".txt"))
    found = [path for path in found if path.name not in ("manifest.json", "init.json")]
    return {path.relative_to(place).as_posix(): files.sha256_file(path) for path in found}
