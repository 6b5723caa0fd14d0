"""A training of several processes: what the run starts and waits for, and what each of them (`main`) does.

Ranks know no store and no lock: a spec file in the training's scratch folder tells them all.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

from kdlab import files, runtime
from kdlab.errors import UserError
from kdlab.strategies.launch import TOLD_TO_STOP, launch

SPEC, SUMMARY = "spec.json", "summary.json"


def run(out: Path, inputs: dict[str, Path], params: dict[str, Any], local: dict[str, Any]) -> dict[str, Any]:
    """Trains with local["strategy"]["devices"] processes. Arguments and result as of train_model.run.

    Raises: UserError of a rank, or where one was killed; RuntimeError with the traceback of one that failed otherwise;
        KeyboardInterrupt where all were told to stop.
    """
    folder = (out / "scratch" / "ranks").absolute()
    shutil.rmtree(folder, ignore_errors=True)
    places = {name: str(path.absolute()) for name, path in inputs.items()}
    spec = {"out": str(out.absolute()), "inputs": places, "params": params, "local": local}
    files.write_json(folder / SPEC, spec)
    failed = launch("kdlab.stages.train_ranks", folder / SPEC, local["strategy"]["devices"], local["threads"])
    if failed:
        _blame(folder, failed)
    if not (folder / SUMMARY).exists():
        raise KeyboardInterrupt
    summary: dict[str, Any] = files.read_json(folder / SUMMARY)
    return summary


def _blame(folder: Path, failed: dict[int, int]) -> None:
    """Raises the error of the rank that failed first; the others fail for want of it."""
    killed = {rank: -code for rank, code in failed.items() if code < 0 and -code != signal.SIGTERM}
    told = [files.read_json(path) for path in folder.glob("error.*.json")]
    for error in sorted(told, key=lambda error: (not error["mine"], error["time"])):
        if error["mine"]:
            raise UserError(error["text"])
        if not killed:
            raise RuntimeError(f"rank {error['rank']} of the training failed\n{error['text']}")
    rank, number = next(iter(killed.items()), (min(failed), 0))
    who = (
        "what watches the ranks of the training (torchrun, on several nodes srun)"
        if rank < 0
        else f"rank {rank} of the training"
    )
    how = f"was killed by {signal.Signals(number).name}" if number else f"ended with exit code {failed[rank]}"
    raise UserError(
        f"{who} {how} (where nobody did it, memory ran out), and no rank can go on alone, so all "
        "were stopped and the last checkpoint is kept; run the same command, which continues"
    )


def main(spec_file: Path) -> int:
    """One rank. Its error goes into a file, so that the run can tell which came first."""
    import time

    rank = int(os.environ["RANK"])
    runtime.end_with_parent(signal.SIGKILL)
    if rank:
        runtime.be_quiet()
    spec = files.read_json(spec_file)
    try:
        summary = _train(spec)
        if not rank:
            files.write_json(spec_file.parent / SUMMARY, summary)
    except KeyboardInterrupt:
        return TOLD_TO_STOP
    except BaseException as error:
        mine = isinstance(error, UserError)
        text = str(error) if mine else traceback.format_exc()
        told = {"rank": rank, "mine": mine, "text": text, "time": time.time()}
        files.write_json(spec_file.parent / f"error.{rank}.json", told)
        return 1
    return 0


def _train(spec: dict[str, Any]) -> dict[str, Any]:
    import torch
    import torch.distributed as dist

    from kdlab.stages import train_model
    from kdlab.strategies.ranks import BACKENDS

    local, here = spec["local"], int(os.environ["LOCAL_RANK"])
    device = runtime.device(local["device"])
    if device == "cuda":
        torch.cuda.set_device(here)
    dist.init_process_group(BACKENDS[device])
    inputs = {name: Path(place) for name, place in spec["inputs"].items()}
    summary = train_model.train(Path(spec["out"]), inputs, spec["params"], local)
    dist.barrier()
    return summary


if __name__ == "__main__":
    code = main(Path(sys.argv[1]))
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(code)  # gloo's threads sometimes abort an interpreter that ends in the usual way
