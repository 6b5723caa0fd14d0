"""Starts the processes of one training with torchrun, waits for them, and says which of them failed and how.

    the run (knows store and locks) --> agent (torchrun; this file as a program) --> ranks (know a spec file alone)

No process outlives the one that started it. In a SLURM job of several nodes there is an agent on each: slurm.py.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from kdlab import files, runtime

FAILED = "failed.{node}.json"  # beside the spec: the exit code of every rank that failed on a node
TOLD_TO_STOP = 130  # exit code of a rank that has saved and left
# Ranks that are told to stop finish their step (a validation with it) and save; torchrun kills them after 30 s.
PATIENCE = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "600"}
REPEAT_S = 10.0


def command(module: str, spec: Path, devices: int) -> list[str]:
    """What starts the ranks: `python -m module spec` so many times, with RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and
    MASTER_PORT in their environment."""
    return [sys.executable, "-m", "kdlab.strategies.launch", str(os.getpid()), str(devices), module, str(spec)]


def launch(module: str, spec: Path, devices: int, threads: int) -> dict[int, int]:
    """Runs the ranks to their end; exit codes of those that failed, by rank.

    Raises: KeyboardInterrupt when told to stop (Ctrl-C, SIGTERM, SIGUSR1), after the ranks have saved and left.
    """
    for old in spec.parent.glob(FAILED.format(node="*")):
        old.unlink()
    environment = {**PATIENCE, **os.environ, "OMP_NUM_THREADS": str(threads)}
    process = subprocess.Popen(command(module, spec, devices), env=environment)
    with _interrupted_by(signal.SIGTERM, signal.SIGUSR1):
        try:
            code = process.wait()
        except KeyboardInterrupt:
            _stop(process)
            raise
    failed = {
        int(rank): int(exit_code)
        for path in spec.parent.glob(FAILED.format(node="*"))
        for rank, exit_code in files.read_json(path).items()
    }
    if code == 0 or failed:
        return failed
    return {-1: code}


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Tells the ranks to save and leave, and waits until they have."""
    if runtime.num_nodes() == 1:
        process.terminate()
        process.wait()
        return
    while process.poll() is None:  # SIGTERM would have srun kill them; what comes before they run is lost
        process.send_signal(signal.SIGUSR1)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=REPEAT_S)


@contextmanager
def _interrupted_by(*numbers: signal.Signals) -> Iterator[None]:
    """The first of these signals ends what is under way, as Ctrl-C does, and no later one disturbs the end: SLURM tells
    every process of a job, and a batch script's shell tells us once more. In the main thread, the only one that gets
    them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        for each in numbers:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _agent(run_pid: str, devices: str, module: str, spec: str) -> int:
    runtime.end_with_parent(signal.SIGTERM)
    if os.getppid() != int(run_pid):  # it ended before it was asked for a signal
        return TOLD_TO_STOP
    if (nodes := runtime.num_nodes()) > 1:
        from kdlab.strategies import slurm

        slurm.start(module, Path(spec), int(devices), nodes)
    return watch(module, spec, "--standalone", "--nproc-per-node", devices)


def watch(module: str, spec: str, *where: str) -> int:
    """torchrun with the options `where`, without its report of a page: it ends all ranks here when one ends badly."""
    import logging

    from torch.distributed.elastic.multiprocessing import api
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    first = api._terminate_process_handler

    def once(signum: int, frame: FrameType | None) -> None:
        """A second signal would end the waiting for the ranks, and them with it."""
        for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
            signal.signal(each, signal.SIG_IGN)
        first(signum, frame)

    api._terminate_process_handler = once
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # where it goes to every process; the ranks and the run heed it
    logging.disable(logging.ERROR)
    try:
        run(parse_args([*where, "--max-restarts", "0", "-m", module, spec]))
    except ChildFailedError as error:
        codes = {str(rank): failure.exitcode for rank, failure in error.failures.items()}
        if set(codes.values()) == {TOLD_TO_STOP}:
            return 0  # no failure: another node's ranks may still be saving, and must not be killed
        files.write_json(Path(spec).parent / FAILED.format(node=os.environ.get("SLURM_NODEID", 0)), codes)
        return 1
    except SignalException:
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(_agent(*sys.argv[1:]))
