"""Trainings at Weights & Biases: one W&B run for each, on its server or in a folder that `wandb sync` sends later."""

from __future__ import annotations

import os
import socket
import threading
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, final
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import wandb
from lightning.pytorch.loggers import Logger

from kdlab import files, runtime
from kdlab.errors import UserError
from kdlab.training.loggers import Training

Mode = Literal["auto", "online", "offline", "disabled"]

PROBE_S = 3.0  # for an answer of the network
INIT_S = 10.0  # for the server to know the run
FINISH_S = 300.0  # for what is left to be sent at the end; the rest stays in the folder
STEP = "step"  # our own: W&B's counts calls, and begins again when a run goes on


@final
class WandbLogger(Logger):
    """A Lightning logger that makes a W&B run of a training.

    group = the sweep (WANDB_RUN_GROUP, which kdlab.sweep sets) or the experiment; job_type = the step of the plan;
    name = the point. A resumed training goes on in its run; offline every attempt is a run of its own in the group,
    because W&B does not join folders.

    Args:
        training: given by the stage.
        mode: auto never waits long and never fails: see `choose_mode`.
        log_model: whether `keep_model` makes an artifact.

    Raises: UserError where mode is online and the server cannot be reached.
    """

    def __init__(
        self,
        training: Training,
        project: str,
        mode: Mode,
        save_dir: str,
        entity: str | None = None,
        tags: Sequence[str] = (),
        log_model: bool = True,
    ):
        super().__init__()
        self.step = training.step
        self._log_model = log_model
        self._project = project
        folder = Path(save_dir).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("WANDB_DATA_DIR", str(folder / "wandb"))  # artifacts on their way: not into the home
        known = _known(training.scratch)
        fixed = {
            "project": project,
            "entity": entity,
            "dir": str(folder),
            "group": os.environ.get("WANDB_RUN_GROUP") or training.config["name"],
            "job_type": training.step,
            "name": training.folder.name,
            "tags": list(dict.fromkeys([*training.tags, *tags])),
            "config": training.config,
            "reinit": "create_new",  # a sweep trains several in one process
        }
        chosen, why = choose_mode(mode)
        if chosen == "online":
            try:
                self._run = _init(fixed, "online", known["id"], resume="allow")
            except wandb.Error as error:
                if mode == "online":
                    raise UserError(
                        f"logger.wandb.mode=online, but W&B does not answer ({error}), so nothing would be logged; run "
                        "`wandb login`, or write logger.wandb.mode=offline and `wandb sync` the folder later"
                    ) from error
                chosen, why = "offline", f"the server does not answer: {error}"
        if chosen != "online":
            self._run = _init(fixed, chosen, f"{known['id']}-r{known['attempts']}")
        self.mode = chosen
        self._run.define_metric(STEP)
        self._run.define_metric("*", step_metric=STEP)
        self._say(why)

    @property
    def name(self) -> str:
        """Lightning wants one."""
        return self._project

    @property
    def version(self) -> str:
        """The id of the W&B run."""
        return str(self._run.id)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """One row of history."""
        self._run.log({**metrics, STEP: step})

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The configuration was given at the start."""

    def keep_samples(self, columns: list[str], rows: list[list[str]], curves: Any, step: int) -> None:
        """A table of translations, and a picture (of PIL) of how the training went."""
        table = wandb.Table(columns=[*columns], data=rows)
        self._run.log({"samples": table, "curves": wandb.Image(curves), STEP: step})

    def keep_summary(self, values: Mapping[str, Any]) -> None:
        """What is compared between runs."""
        self._run.summary.update(values)

    def keep_model(self, folder: Path, patterns: Sequence[str], card: Mapping[str, Any]) -> None:
        """An artifact of the files of a model's folder that fit the patterns."""
        if not self._log_model:
            return
        artifact = wandb.Artifact(f"{self.step}-{self._run.id}", type="model", metadata=dict(card))
        for path in sorted(path for pattern in patterns for path in folder.glob(pattern)):
            artifact.add_file(str(path), name=path.relative_to(folder).as_posix(), skip_cache=True)
        self._run.log_artifact(artifact)

    def close(self, *, failed: bool) -> None:
        """Ends the W&B run; online it waits until all is sent, `FINISH_S` at most."""
        self._run.finish(exit_code=int(failed))

    def _say(self, why: str) -> None:
        if self.mode == "online":
            runtime.say(f"W&B: {self._run.url}")
        elif self.mode == "offline":
            folder = Path(self._run.dir).parent
            runtime.say(f"W&B: offline ({why}); to send this training later: wandb sync {folder}")


def choose_mode(mode: Mode) -> tuple[Mode, str]:
    """(`mode`, why); for auto: WANDB_MODE where it is set, else online, but offline without key or network and in SLURM
    jobs, whose machines often have none. Takes a few seconds at most and asks nothing.

    Raises: UserError where WANDB_MODE is none of them.
    """
    if mode != "auto":
        return mode, f"logger.wandb.mode={mode}"
    asked = {"dryrun": "offline", "run": "online"}.get(os.environ.get("WANDB_MODE", ""), os.environ.get("WANDB_MODE"))
    for known in ("online", "offline", "disabled"):
        if asked == known:
            return known, f"WANDB_MODE={known}"
    if asked:
        raise UserError(
            f"WANDB_MODE={asked} is no mode that kdlab knows; set it to online, offline or disabled, or unset it"
        )
    if "SLURM_JOB_ID" in os.environ:
        return "offline", "in a SLURM job; logger.wandb.mode=online sends at once"
    url = wandb.setup(wandb.Settings(silent=True)).settings.base_url  # login would ask the server who it is, to say it
    if not _reaches(url):
        return "offline", f"no network to {url}"
    if not wandb.login(prompt=False, verify=False):
        return "offline", "no key: `wandb login` asks for one"
    return "online", ""


def _reaches(url: str) -> bool:
    """Whether something listens at `url`, or at the proxy on the way there; asking for a name has no timeout of its
    own, hence the thread."""
    parts = urlsplit(url)
    proxy = getproxies().get(parts.scheme)
    if proxy and not proxy_bypass(parts.hostname or ""):
        parts = urlsplit(proxy)
    place = (parts.hostname or "", parts.port or {"http": 80}.get(parts.scheme, 443))
    answered = threading.Event()

    def ask() -> None:
        try:
            socket.create_connection(place, timeout=PROBE_S).close()
            answered.set()
        except OSError:
            pass

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PROBE_S)
    return answered.is_set()


def _known(scratch: Path) -> dict[str, Any]:
    """The id of a training at W&B, and which attempt at it this is, from 0."""
    file = scratch / "wandb.json"
    known: dict[str, Any] = files.read_json(file) if file.exists() else {"id": uuid.uuid4().hex[:8], "attempts": -1}
    known["attempts"] += 1
    files.write_json(file, known)
    return known


def _init(fixed: dict[str, Any], mode: Any, run_id: str, **more: Any) -> Any:
    settings = wandb.Settings(silent=True, console="off", init_timeout=INIT_S, finish_timeout=FINISH_S)
    return wandb.init(**fixed, **more, mode=mode, id=run_id, settings=settings)
