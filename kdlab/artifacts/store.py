"""The store: one folder per result, named by its key, and the walk that makes what is missing.

store/<stage>/<key>/                 a result: it counts as done when manifest.json is whole and names this key
store/<stage>/<key>.work-<owner>/    a run in progress, or what a killed one left for the next to resume
store/<stage>/<key>.shared/          `scratch` of a step with `assist`: not renamed when its owner dies, since others
                                     are at work there; the owner alone makes it, and moves it away in the end
store/<stage>/.<key>.lock.<n>        who works on it (files.Lease)
"""

from __future__ import annotations

import contextlib
import copy
import errno
import os
import shutil
import time
from collections.abc import Callable, Iterable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from kdlab import files, runtime
from kdlab.artifacts.attempts import Attempts
from kdlab.artifacts.stage import Step, needed, plan_keys
from kdlab.errors import UserError, did_you_mean

MANIFEST = "manifest.json"
SCRATCH = "scratch"  # what a stage keeps only to resume; never published
POLL_S = 1.0

State = Literal["reuse", "run", "skip"]
OnStep = Callable[[Step, str, State], None]


class Store:
    """Results by stage and key under one root folder."""

    def __init__(self, root: Path | str):
        self.root = Path(root)

    def folder(self, stage: str, key: str) -> Path:
        """Where a result lies, whether it exists or not."""
        return self.root / stage / key

    def manifest(self, stage: str, key: str) -> dict[str, Any] | None:
        """The manifest of a finished result; None for everything that is not finished."""
        return _read_manifest(self.folder(stage, key), key)

    def state(self, step: Step, key: str) -> State:
        """`reuse` when the result is there, else `run`."""
        return "reuse" if self.manifest(step.stage, key) else "run"

    def is_making(self, stage: str, key: str) -> bool:
        """Whether a process is at work on a result, here or elsewhere."""
        try:
            return files.Lease(self._lock(stage, key)).holder() is not None
        except FileNotFoundError:
            return False

    def plan(self, plan: Iterable[Step], until: str | None = None) -> list[tuple[Step, str, State]]:
        """Every step up to `until` with its key and what `walk` would do with it.

        `skip`: neither there nor needed, because everything that uses it is there. Raises: UserError for an unknown
        `until`; "report" stands for all steps.
        """
        steps = list(plan)
        keys, names = plan_keys(steps), [step.name for step in steps]
        if until in (None, "report"):
            until = None
        elif until not in names:
            raise UserError(
                f"until={until!r} is no step of this recipe{did_you_mean(str(until), [*names, 'report'])}; "
                f"the run would not know where to stop; choose one of {', '.join([*names, 'report'])}"
            )
        steps = needed(steps, until)
        used = {name for step in steps for name in step.inputs.values()}
        wanted = {step.name for step in steps} - used
        states: dict[str, State] = {}
        for step in reversed(steps):
            states[step.name] = self.state(step, keys[step.name])
            if states[step.name] == "run":
                if step.name in wanted:
                    wanted.update(step.inputs.values())
                else:
                    states[step.name] = "skip"
        return [(step, keys[step.name], states[step.name]) for step in steps]

    def walk(self, plan: Iterable[Step], until: str | None = None, on_step: OnStep | None = None) -> dict[str, Path]:
        """Makes what is missing, upstream first; returns the folder of every finished step by its name.

        `on_step` is told of every step that is reused or run, just before; by default a line says it.
        Raises: UserError for what the user can mend (a full disk, a store that cannot be written).
        """
        listing = self.plan(plan, until)
        keys = {step.name: key for step, key, _ in listing}
        places = {step.name: self.folder(step.stage, key) for step, key, _ in listing}
        stages = {step.name: step.stage for step, _, _ in listing}
        folders: dict[str, Path] = {}
        for step, key, state in listing:
            if state == "skip":
                continue
            state = self.state(step, key)  # the same result under another name, or another process, may have made it
            (on_step or _announce)(step, key, state)
            if state == "run":
                for name in step.inputs.values():
                    if self.manifest(stages[name], keys[name]) is None:
                        raise UserError(
                            f"step '{step.name}' needs the result of '{name}', but {places[name]} is not complete; "
                            "it was removed or damaged while this run was under way; run the same command again"
                        )
                upstream = {name: keys[source] for name, source in step.inputs.items()}
                self._make(step, key, {name: places[source] for name, source in step.inputs.items()}, upstream)
            folders[step.name] = places[step.name]
        return folders

    def _make(self, step: Step, key: str, inputs: dict[str, Path], upstream: dict[str, str]) -> None:
        folder = self.folder(step.stage, key)
        attempts = Attempts()
        lease = files.Lease(self._lock(step.stage, key), on_beat=attempts.note)
        work = folder.with_name(f"{key}.work-{lease.owner.id}")
        published = False
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            self._acquire(lease, step, key, inputs)
            published = self.manifest(step.stage, key) is not None
            if published:
                return
            self._take_over(work, key, step)
            if _read_manifest(work, key) is None:  # else killed between the manifest and the rename: only publish
                attempts.begin(work)
                summary = step.run(work, dict(inputs), copy.deepcopy(step.params), copy.deepcopy(step.local))
                if lease.lost:
                    raise _taken_over(step)
                spent = attempts.finish()
                if (work / SCRATCH).is_symlink():  # the work of many is kept until the manifest is there
                    (work / SCRATCH).unlink()
                shutil.rmtree(work / SCRATCH, ignore_errors=True)
                files.sync(work)  # a manifest vouches for the files beside it
                files.write_json(work / MANIFEST, _manifest(step, key, upstream, summary or {}, spent))
            _end_sharing(_shared(folder), lease.owner.id)
            files.publish(work, folder)
            published = True
        except BaseException as error:
            attempts.stop()
            if lease.lost and isinstance(error, OSError):  # whoever took it over has renamed the folder
                raise _taken_over(step) from error
            if _disk_is_full(error, self.root):
                raise UserError(
                    f"the disk of {self.root} is full; step '{step.name}' could not go on; finished steps are kept, "
                    f"and what this one has done is kept in {work}: free some space there and run the same command, "
                    "which continues (or choose another disk with paths.store=<folder>)"
                ) from error
            if isinstance(error, PermissionError) and not os.access(self.root, os.W_OK):
                raise UserError(
                    f"the store {self.root} cannot be written; results have to be put there; "
                    "mend its permissions or write paths.store=<a folder of yours>"
                ) from error
            raise
        finally:
            lease.release(forget=published)

    def _acquire(self, lease: files.Lease, step: Step, key: str, inputs: dict[str, Path]) -> None:
        told = assisted = None
        shared = _shared(self.folder(step.stage, key))
        while (owner := lease.try_acquire()) is not None:
            if owner.id != told:
                doing = "waiting" if step.assist is None else "taking a part in it"
                runtime.say(f"{step.name}: process {owner.pid} on {owner.host} is making {step.stage}/{key}; {doing}")
                told = owner.id
            if step.assist is not None and owner.id != assisted and shared.is_dir():
                step.assist(shared, dict(inputs), copy.deepcopy(step.params), copy.deepcopy(step.local))
                assisted = owner.id
            time.sleep(POLL_S)

    def _lock(self, stage: str, key: str) -> Path:
        return self.folder(stage, key).with_name(f".{key}.lock")

    def _take_over(self, work: Path, key: str, step: Step) -> None:
        # We hold the lease, so every other work folder of this key is a dead owner's: the newest is worth resuming.
        folder = self.folder(step.stage, key)
        left = sorted(folder.parent.glob(f"{key}.work-*"), key=lambda path: path.stat().st_mtime)
        for older in left[:-1]:
            shutil.rmtree(older, ignore_errors=True)
        if left:
            os.rename(left[-1], work)
            for half in work.rglob(".*.tmp"):  # killed while it wrote a file
                half.unlink()
            runtime.say(f"{step.name}: resuming what an earlier run left")
        else:
            work.mkdir(parents=True)
        if step.assist is not None and _read_manifest(work, key) is None:
            _shared(folder).mkdir(exist_ok=True)
            with contextlib.suppress(FileExistsError):
                (work / SCRATCH).symlink_to(Path("..", _shared(folder).name))
        if folder.exists():
            aside = folder.with_name(f"{key}.incomplete-{work.name[-6:]}")
            os.rename(folder, aside)
            runtime.say(f"{step.name}: {folder} has no valid {MANIFEST}; moved to {aside.name} and made again")


def _announce(step: Step, key: str, state: State) -> None:
    runtime.say(f"{step.name}: {state} {step.stage}/{key}")


def _shared(folder: Path) -> Path:
    """Where the processes that make this result together work."""
    return folder.with_name(f"{folder.name}.shared")


def _end_sharing(shared: Path, owner: str) -> None:
    """Moved away before it is removed: whoever is late finds no folder, and makes none."""
    with contextlib.suppress(FileNotFoundError):
        os.rename(shared, shared.with_name(f"{shared.name}-{owner}"))
    for gone in shared.parent.glob(f"{shared.name}-*"):
        shutil.rmtree(gone, ignore_errors=True)


def _read_manifest(folder: Path, key: str) -> dict[str, Any] | None:
    try:
        found = files.read_json(folder / MANIFEST)
    except (OSError, ValueError):  # absent, or cut short by a power failure
        return None
    return found if isinstance(found, dict) and found.get("key") == key else None


def _manifest(
    step: Step, key: str, upstream: dict[str, str], summary: dict[str, Any], spent: dict[str, float]
) -> dict[str, Any]:
    return {
        "stage": step.stage,
        "version": step.version,
        "key": key,
        "params": step.params,
        **({"code": step.code} if step.code else {}),
        "inputs": upstream,
        "local": step.local,
        "device": runtime.device(step.local["device"]) if "device" in step.local else None,
        "commit": runtime.commit(),
        "versions": runtime.versions(),
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        **spent,
        "summary": summary,
    }


def _taken_over(step: Step) -> UserError:
    return UserError(
        f"step '{step.name}' was taken over by another process while this one was not heard of; two runs of one step "
        "would overwrite each other, so this one stops; run the same command again"
    )


def _disk_is_full(error: BaseException, root: Path) -> bool:
    # Writers in C++ (torch, safetensors) raise their own errors without an errno, so the text and the disk count too.
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if "No space left on device" in str(cause):
            return True
        cause = cause.__cause__ or cause.__context__
    with contextlib.suppress(OSError):
        return isinstance(error, Exception) and shutil.disk_usage(root).free < 1 << 20
    return False
