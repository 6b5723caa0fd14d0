"""Stage evaluate_model: translations of the test sets by a model, their scores and what they cost.

Writes scores.json {test: {bleu: {score, signature}, chrf: ..., sentences, sentences_per_s, ...}}, <test>.hyp.txt (one
line per sentence) and <test>.statistics.json {metric: per-sentence counts}, of which scores are sums.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kdlab import files, runtime
from kdlab.errors import memory_may_run_out

VERSION = 1


@memory_may_run_out("write decode.batch_tokens lower")
def run(out: Path, inputs: dict[str, Path], params: dict[str, Any], local: dict[str, Any]) -> dict[str, Any]:
    """Translates and scores test sets.

    inputs: corpus (for its test sets alone), model (what decoding/engines.py opens: its own tokenizer is used).
    params: decode {beam_size, ...}, metrics, tests. local: device, threads.
    Raises: UserError where the model folder is not whole or its tokenizer is not the one it was trained with.
    """
    from kdlab.data.prepared import PreparedCorpus
    from kdlab.decoding.engines import batch_width, open_engine
    from kdlab.decoding.translator import translate_lines
    from kdlab.evaluation.efficiency import Stopwatch, efficiency
    from kdlab.evaluation.sacrebleu import score

    runtime.start_torch(local["threads"])
    decode, device = params["decode"], runtime.device(local["device"])
    plan = {"batch_tokens": decode["batch_tokens"], "beam_size": batch_width(decode)}
    corpus = PreparedCorpus.open(inputs["corpus"])
    engine = open_engine([inputs["model"]], decode, device=device, threads=local["threads"], scratch=out / "scratch")

    tests = {name: corpus.test(name) for name in params["tests"]}
    scores: dict[str, Any] = {}
    for name, test in tests.items():
        watch = Stopwatch()
        with runtime.bar(what=f"translating {name}", total=len(test.src)) as shown, watch:
            found = translate_lines(engine, test.src, **plan, progress=shown.update)
        best = [candidates[0] for candidates in found]
        lines = [candidate.text for candidate in best]
        tokens = sum(candidate.num_tokens for candidate in best)
        results = score(lines, test.references, params["metrics"])
        files.write_text(out / f"{name}.hyp.txt", "".join(f"{line}\n" for line in lines))
        files.write_text(out / f"{name}.statistics.json", _statistics(results))
        scores[name] = {
            **{metric: {part: result[part] for part in ("score", "signature")} for metric, result in results.items()},
            "unfinished": sum(not candidate.finished for candidate in best),
            **efficiency(watch, sentences=len(lines), tokens=tokens),
            "parameters": engine.num_parameters,
            "device": device,
        }
        told = ", ".join(f"{metric} {result['score']:.2f}" for metric, result in results.items())
        runtime.say(f"{name}: {told} ({len(lines)} sentences)")
    files.write_json(out / "scores.json", scores)
    return {
        "parameters": engine.num_parameters,
        "scores": {
            name: {metric: round(found[metric]["score"], 2) for metric in params["metrics"]}
            for name, found in scores.items()
        },
    }


def _statistics(results: dict[str, dict[str, Any]]) -> str:
    import json

    return json.dumps({metric: result["statistics"] for metric, result in results.items()}) + "\n"
