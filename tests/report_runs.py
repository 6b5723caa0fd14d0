"""Runs as kdlab.run leaves them, written from scores: for tests of reports and their measurement."""

import hashlib
import json

BLEU = "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.6.0"
CHRF = "nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:2.6.0"
PARAMETERS = {"slim_1x1": 18_900_000, "slim_3x3": 21_900_000, "wide_1x1": 95_000_000, "wide_3x3": 153_000_000}
TEACHER = 468_000_000


def dump(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


class Runs:
    """Writes below `root`: root/runs/<experiment>/<point>/run.json and root/store."""

    def __init__(self, root):
        self.root = root

    def add(
        self, experiment, *, student="slim_1x1", recipe="word_kd", weights=None, temperature=1.0, mix=0.34, seed=1,
        init="random", share=None, scores=None, alone=None, teacher=None, tests=("wmt20",), signature=BLEU,
        device="cpu", error=None, statistics=None, values=(), baseline=True, curve=(), speed=100.0,
    ):  # fmt: skip
        """One run; `scores`, `alone`, `teacher`: BLEU by test set, None for what is not finished."""
        terms = {
            name: {"weight": weight, "term": {"temperature": temperature} if name == "kd" else {}}
            for name, weight in (weights or {"nll": 1.0, "kd": 1.0}).items()
        }
        config = {
            "name": experiment, "seed": seed, "temperature": temperature, "mix": mix, "max_steps": 600, "until": None,
            "recipe": {"_target_": f"kdlab.recipes.{recipe}.plan"}, "teacher": {"seed": 1},
            "objective": {"terms": terms},
            "baseline_objective": {"terms": {"nll": {"weight": 1.0, "term": {}}}}, "evaluate": {"tests": None},
            "data": {"tests": dict.fromkeys(tests)}, "paths": {"store": str(self.root / "store"), "runs": "runs"},
            **({} if share is None else {"gold_share": share}),
        }  # fmt: skip
        choices = {"student": student, "teacher": "wide_24x6", "recipe": recipe, "objective": recipe, "init": init}
        choices |= {"data": "wmt21_deen", "objective@baseline_objective": "nll"}
        mine = (student, seed, init, share)
        made = {"teacher": ("t",), "student": ("s", *mine, recipe, temperature, mix, str(terms), *values)}
        made |= {"baseline": ("b", *mine)} if baseline else {}
        names = {"teacher": "evaluate_teacher", "student": "evaluate", "baseline": "evaluate_baseline"}
        measured = {"teacher": teacher, "student": scores, "baseline": alone}
        steps = {"corpus": {"stage": "prepare_corpus", "key": "corpus"}}
        if recipe != "word_kd":
            steps["pseudo_label"] = {"stage": "pseudo_label", "key": "labels"}
        for model, what in made.items():
            key = self._key(*what)
            steps[model] = {"stage": "train_model", "key": key}
            steps[names[model]] = {"stage": "evaluate_model", "key": self._key("evaluate", *what)}
            size = TEACHER if model == "teacher" else PARAMETERS[student]
            if measured[model] is not None or model == "teacher":
                self._manifest("train_model", key, device, {"parameters": size}, curve=curve)
            if measured[model] is not None:
                place = self._manifest("evaluate_model", steps[names[model]]["key"], device, {})
                dump(place / "scores.json", {t: self._scores(b, signature, speed) for t, b in measured[model].items()})
                for test, found in ((statistics or {}).get(model) or {}).items():
                    dump(place / f"{test}.statistics.json", found)
        key = self._key(experiment, *made["student"], [name for name in measured if measured[name] is not None])
        folder = self.root / "runs" / experiment / f"point-{key}"
        overrides = [f"+experiment={experiment}", f"student={student}", f"temperature={temperature}", f"seed={seed}"]
        record = {"overrides": overrides, "choices": choices, "values": [*values], "config": config, "steps": steps}
        dump(folder / "run.json", record)
        if error:
            (folder / "error.txt").write_text(error)
        return folder

    def _manifest(self, stage, key, device, summary, curve=()):
        place = self.root / "store" / stage / key
        params = {"trainer": {"precision": "fp32"}, "decode": {"precision": "fp32"}}
        told = {"stage": stage, "key": key, "summary": summary, "device": device, "params": params, "commit": "c0ffee"}
        dump(place / "manifest.json", told | {"seconds": 1800.0, "cpu_seconds": 3600.0})
        if curve:
            rows = [f"{step},valid/bleu,{value}\n" for step, value in enumerate(curve)]
            (place / "metrics.csv").write_text("step,metric,value\n" + "".join(rows))
        return place

    @staticmethod
    def _scores(bleu, signature, speed):
        both = {"bleu": {"score": bleu, "signature": signature}, "chrf": {"score": bleu + 20, "signature": CHRF}}
        return {**both, "sentences": 1000, "sentences_per_s": speed}

    @staticmethod
    def _key(*what):
        return hashlib.sha256(repr(what).encode()).hexdigest()[:12]
