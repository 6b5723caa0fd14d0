"""Two processes decode one corpus and are killed at random moments, by SIGKILL and SIGTERM: no byte may change.

    python tests/crash_labelling.py           20,000 lines, ten moments, every process the ordinary command
    python tests/crash_labelling.py --quick   a slice of it for the tests: processes are forked, so that they start soon

A moment is a random share of what the shards' files will hold, or the merge. A random one of the two processes, or
both, get the signal and are started again. At the end the file is that of an uninterrupted run, and nothing else is
left.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from kdlab import files, run
from kdlab.data import decode_plan
from kdlab.data.prepared import PreparedCorpus
from kdlab.models.folder import save_model
from kdlab.models.init import random_init
from kdlab.models.transformer import Transformer, TransformerConfig

ATTEMPTS = 5
POLL_S = 0.01
DIALS = [
    *("recipe=seq_kd", "objective=seq_kd", "mix=0", "baseline=false", "student=toy_1x1", "vocab_size=400"),
    *("data.valid.num_lines=20", "data.tests.toy.num_lines=20", "trainer.device=cpu", "trainer.threads=1"),
    *(
        "label_decode=greedy",
        "label_decode.batch_tokens=1024",
        "label_decode.max_length_ratio=0",
        "label_decode.max_length_extra=3",
    ),
]


class Crashes:
    """One store in which processes are started, killed and started again."""

    def __init__(self, root: Path, overrides: list[str], forked: bool):
        self.root, self._overrides, self._forked = root, overrides, forked
        self.pids: list[int] = []
        self.said = root / "said.txt"

    def start(self) -> None:
        """One more process that wants the hypotheses."""
        arguments = [*self._overrides, f"paths.store={self.root}/store", f"paths.runs={self.root}/runs"]
        with open(self.said, "ab") as said:
            if not self._forked:
                command = [sys.executable, "-m", "kdlab.run", *arguments]
                self.pids.append(subprocess.Popen(command, stdout=said, stderr=said).pid)
            elif (pid := os.fork()) != 0:
                self.pids.append(pid)
            else:
                os.dup2(said.fileno(), 1)
                os.dup2(said.fileno(), 2)
                os._exit(run.main(arguments))

    def running(self) -> list[int]:
        """Processes that have not ended; one that ended by itself must have ended well."""
        for pid in list(self.pids):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                self.pids.remove(pid)
                assert status == 0, f"a process ended with {status}:\n{self.said.read_text()[-3000:]}"
        return self.pids

    def kill(self, pid: int, number: int) -> int:
        """Ends a process by a signal; its status."""
        self.pids.remove(pid)
        os.kill(pid, number)
        return os.waitpid(pid, 0)[1]

    def written(self) -> int:
        """Bytes in the files of all shards."""
        size = 0
        for path in self.root.glob("store/decode_sources/*.shared/shards/*"):
            try:
                size += path.stat().st_size
            except FileNotFoundError:  # renamed meanwhile
                continue
        return size

    def merging(self) -> bool:
        """Whether the merge is under way."""
        return any(self.root.glob("store/decode_sources/*.work-*/hypotheses.arrow"))

    def result(self) -> Path | None:
        """The published folder."""
        return next((path.parent for path in self.root.glob("store/decode_sources/*/manifest.json")), None)

    def finish(self) -> Iterator[int]:
        """Waits for all processes; yields what is written every few milliseconds."""
        while self.running():
            yield self.written()
            time.sleep(POLL_S)


def material(root: Path, num_lines: int) -> tuple[list[str], int]:
    """A prepared corpus in root/store and a random teacher: the overrides of a run, and the rows of the corpus."""
    overrides = [*DIALS, f"data.train.0.num_lines={num_lines}"]
    paths = [f"paths.store={root}/store", f"paths.runs={root}/runs"]
    assert run.main([*overrides, *paths, "until=corpus"]) == 0
    corpus = PreparedCorpus.open(next(root.glob("store/prepare_corpus/*/manifest.json")).parent)
    tokenizer, folder = corpus.tokenizer, root / "teacher"
    sizes = (tokenizer.src_vocab_size, tokenizer.tgt_vocab_size)
    model = Transformer(TransformerConfig(*sizes, 1, 1, 16, 32, 2, max_positions=256))
    random_init(model, 1)
    save_model(folder, model, {"tokenizer": tokenizer.fingerprint})
    tokenizer.save(folder / "tokenizer")
    return [*overrides, "teacher=folder", f"teacher.path={folder}", "until=hypotheses"], len(corpus.train)


def crash(crashes: Crashes, whole: int, moments: list[float], rng: random.Random) -> list[str]:
    """Kills at every moment (a share of `whole` bytes; beyond 1: the merge), starts again, and finishes.

    Raises: TimeoutError when all was done before the last moment.
    """
    told = []
    for turn, moment in enumerate(moments):
        while len(crashes.running()) < 2 and crashes.result() is None:
            crashes.start()
        while not (crashes.merging() if moment > 1 else crashes.written() >= moment * whole):
            if crashes.result() is not None:
                raise TimeoutError(f"the run ended before it could be killed at {moment:.2f}")
            time.sleep(POLL_S)
        time.sleep(rng.random() * 0.02)
        if len(crashes.running()) < 2:
            raise TimeoutError(f"the run ended before it could be killed at {moment:.2f}")
        victims = rng.choice([[0], [1], [0, 1]])
        number = (signal.SIGKILL, signal.SIGTERM)[turn % 2]
        statuses = [crashes.kill(pid, number) for pid in [crashes.pids[victim] for victim in victims]]
        at = "merge" if moment > 1 else f"{moment:.2f}"
        who = {(0,): "older", (1,): "younger", (0, 1): "both"}[tuple(victims)]
        told.append(f"at {at}: {number.name} to {who}, exit {' '.join(map(describe, statuses))}")
    while len(crashes.running()) < 2 and crashes.result() is None:
        crashes.start()
    for _ in crashes.finish():
        pass
    return told


def describe(status: int) -> str:
    """An exit status as a shell says it."""
    return str(os.waitstatus_to_exitcode(status))


def main() -> int:
    """Runs, prints what was done, and fails where a byte differs or anything is left behind."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="1,500 lines, three moments, forked processes")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    args = parser.parse_args()
    torch.set_num_threads(1)
    rng = random.Random(args.seed)
    num_lines, kills = (1650, 3) if args.quick else (22_500, 10)
    if args.quick:
        decode_plan.SHARD_ROWS = 128  # forked processes have it too
    root = Path(tempfile.mkdtemp(prefix="kdlab-crash-"))
    overrides, rows = material(root / "whole", num_lines)
    print(f"seed {args.seed}: {rows:,} lines, {-(-rows // decode_plan.SHARD_ROWS)} shards", flush=True)

    prepared = root / "whole" / "store" / "prepare_corpus"
    whole = Crashes(root / "whole", overrides, args.quick)
    whole.start()
    begun, written = time.monotonic(), max(whole.finish())
    seconds = time.monotonic() - begun
    print(f"uninterrupted, one process: {seconds:.1f} s, {written:,} bytes of shards", flush=True)
    for attempt in range(ATTEMPTS):
        killed = Crashes(root / f"killed_{attempt}", overrides, args.quick)
        shutil.copytree(prepared, killed.root / "store" / "prepare_corpus")
        moments = [*sorted(rng.uniform(0.0, 0.97) for _ in range(kills - 1)), 2.0]
        begun = time.monotonic()
        try:
            print("\n".join(crash(killed, written, moments, rng)))
            break
        except TimeoutError as late:  # a busy machine may let a run end before we look
            for _ in killed.finish():
                pass
            print(f"{late}; once more", flush=True)
    else:
        raise AssertionError("the runs always ended before they could be killed: choose more lines")
    print(f"two processes, killed {kills} times: {time.monotonic() - begun:.1f} s", flush=True)

    one, other = whole.result(), killed.result()
    assert one is not None and other is not None and one.name == other.name
    assert (one / "hypotheses.arrow").read_bytes() == (other / "hypotheses.arrow").read_bytes(), "bytes differ"
    assert list(other.parent.iterdir()) == [other], f"left behind: {list(other.parent.iterdir())}"
    assert sorted(path.name for path in other.iterdir()) == ["hypotheses.arrow", "manifest.json"], list(other.iterdir())
    costs = ("tokens_per_s", "tokens_per_cpu_s", "cpu_s")
    told = [files.read_json(folder / "manifest.json")["summary"] for folder in (one, other)]
    assert len({str({name: summary[name] for name in summary if name not in costs}) for summary in told}) == 1, told
    cpu_s = [summary["cpu_s"] for summary in told]
    print(f"CPU-seconds of what was kept: {cpu_s[0]} uninterrupted, {cpu_s[1]} killed")
    print(f"identical: {(one / 'hypotheses.arrow').stat().st_size:,} bytes, {rows:,} rows; nothing left behind")
    shutil.rmtree(root)
    return 0


if __name__ == "__main__":
    sys.exit(main())
