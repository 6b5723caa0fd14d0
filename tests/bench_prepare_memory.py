"""Peak memory of preparing a generated corpus: `python tests/bench_prepare_memory.py [num_lines] [max_mib]`.

Prints one JSON line and fails where the peak of the process exceeds `max_mib` (default: 2 million lines, 1.5 GiB). The
stage runs in a process of its own; the text file is written by another.
"""

import importlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TSV = "kdlab.data.corpus.Tsv"
WORDS = ["der", "Hund", "sieht", "das", "kleine", "Haus", "und", "eine", "alte", "Frau"]
WORDS += ["liest", "heute", "ein", "gutes", "Buch", "im", "Garten", "vor", "dem", "Baum"]


def write_lines(path: Path, num_lines: int) -> None:
    """A TSV of distinct pairs of about ten words, cheap to make: the digits of the line number choose the words."""
    block = [" ".join(WORDS[(i // 20**k) % 20] for k in range(2)) for i in range(400)]
    with open(path, "w", encoding="utf-8") as file:
        for number in range(num_lines):
            low, middle, high = number % 400, number // 400 % 400, number // 160_000 % 400
            line = f"{block[low]} {block[middle]} {block[high]} {block[(low + high) % 400]} und {WORDS[number % 7]}"
            file.write(f"{line}\t{line[::-1]}\n")


def prepare(path: Path, out: Path) -> dict:
    """Runs the stage in this process; its peak in MiB, before it and after it, and the rows kept."""
    for package in ("datasets", "pyarrow", "sentencepiece"):  # their weight is no part of the corpus's
        importlib.import_module(package)
    from kdlab.stages import prepare_corpus

    start = time.process_time()
    before = peak_mib()
    (out / "valid.tsv").write_text("ein ganz anderer Satz\tsomething else altogether\n" * 9)
    valid = {"_target_": TSV, "path": str(out / "valid.tsv")}
    sources = {"train": [{"_target_": TSV, "path": str(path)}], "valid": valid, "tests": {}}
    params = {
        "cleaning": {"max_tokens": 100, "max_ratio": 4.0},
        "tokenizer": {"model": "unigram", "joint": True, "vocab_size": 60, "sample_lines": 1000},
        "seed": 0,
    }
    summary = prepare_corpus.run(out, {}, params, {"sources": sources, "tokenizer_path": None})
    cpu = time.process_time() - start
    return {"rows_kept": summary["rows_kept"], "peak_mib": peak_mib(), "before_mib": before, "cpu_seconds": cpu}


def peak_mib() -> float:
    """Largest resident set of this process so far, in MiB.

    From /proc where there is one: ru_maxrss survives exec and so begins at the size of whoever started us.
    """
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) for line in status.read_text().split("\n") if line.startswith("VmHWM")) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(num_lines: int) -> dict:
    """The same in a process of its own, on a corpus in a folder that is removed afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.tsv"
        write_lines(path, num_lines)
        command = [sys.executable, __file__, "--prepare", str(path), folder]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr)
        return json.loads(done.stdout)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--prepare"]:
        print(json.dumps(prepare(Path(sys.argv[2]), Path(sys.argv[3]))))
    else:
        lines = int(sys.argv[1]) if len(sys.argv) > 1 else 2_000_000
        limit = float(sys.argv[2]) if len(sys.argv) > 2 else 1536.0
        found = {"num_lines": lines, **measure(lines)}
        print(json.dumps(found))
        sys.exit(found["peak_mib"] > limit)
