"""A run logged to W&B without key or network, read back from W&B's own file; what stays out of every file."""

import contextlib
import io
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import wandb

from kdlab import files, run
from kdlab.stages import train_loggers
from kdlab.training import wandb_logger
from kdlab.training.loggers import Training
from kdlab.training.wandb_logger import WandbLogger

KEY = "5ec2e7" * 6 + "5ec2"  # 40 characters, as W&B's
NOBODY = "http://127.0.0.1:9"  # a port where nothing listens
TINY = [
    "max_steps=2", "teacher.max_steps=2", "baseline=false", "recipe=word_kd", "objective=word_kd",
    "data.train.0.num_lines=300", "data.valid.num_lines=10", "data.tests.toy.num_lines=10", "vocab_size=200",
    "student.d_model=16", "student.d_ff=32", "teacher.model.d_model=16", "teacher.model.d_ff=32", "until=student",
    "trainer.tokens_per_step=200", "trainer.val_every=1", "trainer.log_every=1",
]  # fmt: skip
OTHERS = [  # of Lightning's, under names of the user's
    "+logger.csv={_target_: lightning.pytorch.loggers.CSVLogger, save_dir: ${paths.runs}/lightning}",
    "+logger.tensorboard._target_=kdlab.training.loggers.tensorboard",
]


@pytest.fixture(autouse=True)
def own_wandb(monkeypatch, tmp_path):
    """W&B remembers what it read at first: each test has its own settings, home and key-less environment."""
    alone(monkeypatch, tmp_path)
    yield
    wandb.teardown()


def alone(patch: pytest.MonkeyPatch, home: Path) -> None:
    wandb.teardown()
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_RUN_GROUP", "SLURM_JOB_ID", "http_proxy", "HTTP_PROXY"):
        patch.delenv(name, raising=False)
    for name in ("HOME", "WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "XDG_CACHE_HOME"):
        patch.setenv(name, str(home / name.lower()))
    patch.setenv("NETRC", str(home / "netrc"))
    patch.setenv("WANDB_BASE_URL", NOBODY)


def inspect(folder: Path) -> list[dict]:
    """The records of an offline run, by W&B's own reader."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folder)]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in found.stdout.splitlines()]


class Finished:
    """A finished run with a planted key: what it said, and W&B's records by job type."""

    def __init__(self, home: Path):
        overrides = [*TINY, "logger=wandb", "logger.wandb.tags=[mine]", *OTHERS, f"paths.store={home}/store"]
        self.home, said = home, io.StringIO()
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            assert run.main([*overrides, f"paths.runs={home}/runs"]) == 0
        self.said = said.getvalue()
        self.point = next((home / "runs/toy").iterdir())
        self.folders = {}
        for folder in sorted((home / "runs/wandb").glob("offline-run-*")):
            records = inspect(folder)
            (start,) = [record["run"] for record in records if record["type"] == "run"]
            self.folders[start["job_type"]] = folder, start, records

    def of(self, job_type: str, kind: str) -> list[dict]:
        return [record[kind] for record in self.folders[job_type][2] if record["type"] == kind]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    home = tmp_path_factory.mktemp("wandb")
    with pytest.MonkeyPatch.context() as patch:
        alone(patch, home)
        patch.setenv("WANDB_API_KEY", KEY)
        patch.setenv("WANDB_RUN_GROUP", "deck-temperature")
        yield Finished(home)
        wandb.teardown()


def test_names_tags_and_the_resolved_configuration(finished):
    record = files.read_json(finished.point / "run.json")
    assert set(finished.folders) == {"teacher", "student"}
    for _, start, _ in finished.folders.values():
        assert start["project"] == "kdlab" and start["run_group"] == "deck-temperature"
        assert start["display_name"] == finished.point.name
        assert start["tags"] == ["word_kd", "toy_1x1", "single", "mine"]  # recipe and objective are of one name
        assert start["config"]["update"].items() >= {"temperature": 1, "max_steps": 2}.items()
        assert start["config"]["update"]["teacher"] == record["config"]["teacher"]
    assert finished.of("student", "exit")[0].get("exit_code", 0) == 0


def test_the_history_has_our_steps_and_every_number_of_metrics_csv(finished):
    (path,) = (finished.home / "store/train_model").glob(f"{student_key(finished)}/metrics.csv")
    wanted = [line.split(",") for line in path.read_text().splitlines()[1:]]
    rows = [row["item"] for row in finished.of("student", "history")]
    logged = {(row["step"], name): value for row in rows for name, value in row.items() if "/" in name}
    assert {(int(step), name): pytest.approx(float(value), rel=1e-4) for step, name, value in wanted} == logged
    names = {name for _, name in logged}
    assert {"train/loss", "train/kd", "valid/bleu", "valid/teacher_kl", "valid/grad_cosine/nll/kd"} <= names
    assert [row["step"] for row in rows] == [1, 1, 2, 2, 2]
    defined = finished.of("student", "metric")
    assert [metric["step_metric"] for metric in defined if metric.get("glob_name") == "*"] == ["step"]


def student_key(finished) -> str:
    return files.read_json(finished.point / "run.json")["steps"]["student"]["key"]


def test_table_image_summary_and_the_student_with_its_card(finished):
    manifest = files.read_json(finished.home / "store/train_model" / student_key(finished) / "manifest.json")
    summary = {}
    for update in finished.of("student", "summary"):
        summary |= update["update"]
    told = manifest["summary"]
    assert (summary["parameters"], summary["steps"]) == (told["parameters"], 2)
    assert summary["best/bleu"] == pytest.approx(told["best_validation"]["bleu"])
    assert summary["curves._type"] == "image-file" and summary["samples._type"] == "table-file"
    assert (summary["curves.width"], summary["curves.height"]) == (720, 3 * 240)
    media = finished.folders["student"][0] / "files/media"
    (table,) = media.glob("table/*.json")
    found = files.read_json(table)
    assert found["columns"] == ["source", "reference", "teacher", "student"] and len(found["data"]) == 8
    (of_teacher,) = (finished.folders["teacher"][0] / "files/media").glob("table/*.json")
    theirs = files.read_json(of_teacher)
    assert theirs["columns"] == ["source", "reference", "teacher"] and theirs["data"] == [r[:3] for r in found["data"]]
    (picture,) = media.glob("images/*.png")
    assert picture.read_bytes()[:4] == b"\x89PNG"
    (model,) = [one for one in finished.of("student", "artifact") if one["type"] == "model"]
    contents = {entry["path"]: entry["local_path"] for entry in model["manifest"]["contents"]}
    stored = finished.home / "store/train_model" / student_key(finished)
    assert set(contents) >= {"weights.safetensors", "config.json", "card.md", "objective.md", "metrics.csv"}
    assert {f"tokenizer/{path.name}" for path in (stored / "tokenizer").iterdir()} <= set(contents)
    for name, place in contents.items():
        assert Path(place).read_bytes() == (stored / name).read_bytes()  # still there when it is sent later
    assert json.loads(model["metadata"]) == files.read_json(stored / "config.json")["card"]
    assert not [one for one in finished.of("teacher", "artifact") if one["type"] == "model"]


def test_it_says_how_to_send_it_later(finished):
    folder, *_ = finished.folders["teacher"]
    assert f"W&B: offline (no network to {NOBODY}); to send this training later: wandb sync {folder}" in finished.said


def test_a_planted_key_is_in_no_file_and_nothing_said(finished):
    assert KEY not in finished.said
    checked = [path for path in finished.home.rglob("*") if path.is_file()]
    assert len(checked) > 40 and any(path.suffix == ".wandb" for path in checked)
    assert [path for path in checked if KEY.encode() in path.read_bytes()] == []


def test_lightnings_own_loggers_work_beside_it(finished):
    logs = list((finished.home / "runs/lightning").glob("*/version_*/metrics.csv"))
    assert [log.read_text().count("\n") > 2 for log in logs] == [True, True]
    events = [list((finished.point / "tensorboard" / step).glob("events*")) for step in ("teacher", "student")]
    assert [len(found) for found in events] == [1, 1] and all(f[0].stat().st_size > 1000 for f in events)


def test_lightnings_own_wandb_logger_has_a_run_for_each_training(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")  # restored afterwards: Lightning's logger sets it
    files.write_json(tmp_path / "run.json", {"choices": {"recipe": "word_kd"}, "config": {"name": "toy"}})
    node = {"_target_": "lightning.pytorch.loggers.WandbLogger", "offline": True, "save_dir": str(tmp_path)}
    for step in ("teacher", "student"):
        with train_loggers.opened({"loggers": [node], "run": str(tmp_path), "name": step}, tmp_path) as (theirs,):
            theirs.log_metrics({"a": 1.0}, 1)
            assert wandb.run is not None
        assert wandb.run is None
    assert len(list(tmp_path.glob("wandb/offline-run-*/*.wandb"))) == 2


def logger(scratch: Path, mode: str) -> WandbLogger:
    training = Training("student", Path("runs/toy/seed=2"), scratch, {"name": "toy"}, [])
    return WandbLogger(training, "kdlab", mode, str(scratch))


class Recorded:
    """What wandb.init was asked for; `online` fails where there is no answer."""

    def __init__(self, answers: bool):
        self.calls, self.answers = [], answers

    def __call__(self, **settings):
        self.calls.append(settings)
        if settings["mode"] == "online" and not self.answers:
            raise wandb.errors.CommError("it is silent")
        return SimpleNamespace(
            id=settings["id"], dir="folder/files", url="https://wandb/run", define_metric=lambda *args, **more: None
        )


def test_a_resumed_training_goes_on_in_its_run_and_offline_in_the_group(tmp_path, monkeypatch):
    monkeypatch.setattr(wandb, "init", init := Recorded(answers=True))
    modes = ["online", "online", "offline", "offline", "online"]
    for mode in modes:
        logger(tmp_path, mode)
    first = init.calls[0]["id"]
    assert [call["id"] for call in init.calls] == [first, first, f"{first}-r2", f"{first}-r3", first]
    assert [call.get("resume") for call in init.calls] == ["allow", "allow", None, None, "allow"]
    assert {(call["group"], call["name"], call["job_type"]) for call in init.calls} == {("toy", "seed=2", "student")}
    (tmp_path / "other").mkdir()
    assert logger(tmp_path / "other", "online").version != first


def test_a_server_that_does_not_answer_is_an_error_only_where_it_was_asked_for(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(wandb, "init", init := Recorded(answers=False))
    monkeypatch.setattr(wandb_logger, "choose_mode", lambda mode: ("online", ""))
    assert logger(tmp_path, "auto").mode == "offline"
    assert [call["mode"] for call in init.calls] == ["online", "offline"]
    assert "offline (the server does not answer: it is silent)" in capsys.readouterr().err
    with pytest.raises(wandb_logger.UserError, match=r"logger\.wandb\.mode=online, but W&B does not answer"):
        logger(tmp_path, "online")
