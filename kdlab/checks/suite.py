"""All checks in their order, and what it means when one fails."""

from __future__ import annotations

from collections.abc import Callable

from kdlab import runtime
from kdlab.checks import formulas, losses, training, vocabulary
from kdlab.checks.material import Material
from kdlab.checks.table import Finding
from kdlab.errors import UserError

Check = Callable[[Material], Finding]

# What a failure means, and where to look.
CHECKS: list[tuple[str, Check, str]] = [
    (
        "padding-proof",
        losses.padding_proof,
        "how far a batch is padded changes the loss, so results hang on the lengths of neighbours; look at masks and "
        "units: objectives/reduce.py (Positions), types.py (num_units), the term.",
    ),
    (
        "cut-anywhere",
        losses.cut_anywhere,
        "the size of microbatches changes the gradient (a mean of means?), so runs on other machines differ; look at "
        "training/module.py (training_step) and objectives/objective.py (units, scales).",
    ),
    (
        "zero at equality",
        losses.zero_at_equality,
        "a student that is its teacher is still pulled elsewhere; look at the term, and whether the teacher has "
        "dropout on or sees other prefixes (teachers/, training/module.py).",
    ),
    (
        "gradient against finite differences",
        losses.finite_differences,
        "the gradient is not that of the loss which is reported; look at add_gradient of the terms and "
        "objectives/reduce.py.",
    ),
    (
        "gradient against the closed form",
        formulas.closed_form,
        "loss or gradient is not what the configuration says (temperature and its square, direction of KL, weights, "
        "mixture, units, smoothing); look at objectives/word_kd.py, nll.py, objective.py.",
    ),
    (
        "high-temperature limit",
        formulas.high_temperature,
        "word-level KD has another size or direction than T squared times KL; look at objectives/word_kd.py.",
    ),
    (
        "teacher frozen and deterministic",
        training.teacher_frozen,
        "the teacher learns, forgets or has dropout, or is saved with the student; look at teachers/ and "
        "training/module.py.",
    ),
    (
        "vocabulary contract",
        vocabulary.vocabulary,
        "ids do not mean the same words to corpus, teacher and student; look at data.tokenizer, teacher.path, "
        "vocab_size and data/vocabulary.py.",
    ),
    (
        "chunked equals plain",
        losses.chunked_equals_plain,
        "trainer.chunk_size changes results; look at objectives/reduce.py and add_gradient of the terms.",
    ),
    (
        "resume state complete",
        training.resume_complete,
        "a run that was stopped ends with other weights; look at training/callbacks.py (Resume) and data/batching.py.",
    ),
]


def run(material: Material, only: set[str] | None = None) -> list[Finding]:
    """Every check, or those named; one that a message to the user stops has failed."""
    findings = []
    for number, (name, check, meaning) in enumerate(CHECKS, 1):
        if only is not None and name not in only:
            continue
        before = runtime.cpu_seconds()
        try:
            found = check(material)
        except UserError as error:
            found = Finding(name, float("inf"), 0.0, str(error))
        assert found.name == name
        findings.append(Finding(name, found.found, found.limit, found.what, meaning))
        state = {True: "holds", False: "FAILS", None: "does not apply"}[found.holds]
        runtime.say(f"check {number}/{len(CHECKS)}, {name}: {state} ({runtime.cpu_seconds() - before:.1f} CPU-s)")
    return findings
