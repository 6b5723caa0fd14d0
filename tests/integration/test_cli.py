"""`python -m kdlab.run`: exit codes, plans, sweeps, Hydra's flags; light and without traceback."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

from kdlab import targets
from kdlab.run import main

ROOT = Path(__file__).resolve().parents[2]
RECIPE = """
from kdlab.artifacts.stage import Step
from kdlab.errors import UserError

def write(out, inputs, params, local):
    if params["seed"] == 13:
        raise UserError("13 is unlucky, which matters here; write another seed")
    (out / "made.txt").write_text(str(params))
    return {}

def plan(cfg):
    params = {"seed": cfg.seed, "temperature": cfg.temperature}
    corpus = Step("corpus", "write_corpus", 1, {"seed": 0}, {}, write)
    local = {"baseline": cfg.baseline}  # what nothing reads would be refused
    return [corpus, Step("student", "write_student", 1, params, {"corpus": "corpus"}, write, local)]
"""


@pytest.fixture
def at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current directory and a recipe of two light steps, as overrides in `FAKE`."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "work").mkdir()
    (tmp_path / "lib" / "fake_recipe.py").write_text(RECIPE, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path / "lib")
    monkeypatch.chdir(tmp_path / "work")
    targets.signature.cache_clear()
    yield tmp_path / "work"
    GlobalHydra.instance().clear()


FAKE = ["recipe._target_=fake_recipe.plan", "recipe.steps=[corpus,teacher,pseudo_label,student]", "baseline=false"]


def folders(at: Path, point: str) -> list[str]:
    return sorted(path.name for path in (at / "runs" / "toy").iterdir() if point in path.name)


def command(*arguments: str, code: str | None = None) -> tuple[subprocess.CompletedProcess[str], float]:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    line = [sys.executable, *(["-c", code] if code else ["-m", "kdlab.run"]), *arguments]
    done = subprocess.run(line, capture_output=True, text=True, cwd=ROOT, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_the_whole_plan_of_the_deck_is_printed_lightly(tmp_path: Path) -> None:
    arguments = ["+experiment=hybrid_wmt20", "temperature=1.0", "dry_run=true"]
    place = [f"paths.store={tmp_path}/store", f"paths.runs={tmp_path}/runs"]
    code = (
        "import sys; from kdlab.run import main; code = main(sys.argv[1:]); "
        "heavy = {'torch', 'lightning', 'datasets', 'numpy', 'sentencepiece'} & set(sys.modules); "
        "print('heavy:', sorted(heavy)); sys.exit(code)"
    )
    done, cpu_s = command(*arguments, *place, code=code)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert lines[0] == ["step", "stage", "key", "state"]
    names = ["corpus", "teacher", "evaluate_teacher", "hypotheses", "pseudo_label", "student", "evaluate"]
    assert [line[0] for line in lines[1:-1]] == [*names, "baseline", "evaluate_baseline"]
    assert all(len(line[2]) == 12 and line[3] == "run" for line in lines[1:-1])
    heavy = done.stdout.splitlines()[-1]
    assert "torch" not in heavy
    assert "lightning" not in heavy
    assert "datasets" not in heavy
    assert cpu_s < 2.0
    assert not (tmp_path / "runs").exists()


def test_help_is_a_light_first_screen() -> None:
    done, cpu_s = command("--help")
    assert done.returncode == 0
    assert cpu_s < 2.0
    for expected in ("wide_24x6", "+experiment", "hybrid_wmt20", "temperature=1.0", "dry_run=false", "--config-dir"):
        assert expected in done.stdout


def test_mistakes_leave_with_code_1_and_no_traceback() -> None:
    done, _ = command("temprature=1.0", "temperature=-1")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == (
        "kdlab: 2 problems in the configuration:\n"
        "  - unknown key 'temprature'; did you mean 'temperature'?\n"
        "  - temperature must be > 0, got -1.0\n"
    )


def test_every_recipes_plan_holds_the_steps_that_its_yaml_names(at: Path) -> None:
    from kdlab import compose, run

    for line in ("recipe=train_only objective=nll", "recipe=word_kd objective=word_kd", "recipe=hybrid"):
        composed = compose.compose([*line.split(), "baseline=false"])
        assert {step.name for step in run.make_plan(composed.cfg)} == set(composed.cfg.recipe.steps)


def test_a_run_leaves_run_json_and_nothing_of_hydras(at: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*FAKE, "seed=2", "until=corpus"]) == 0
    (name,) = folders(at, "seed=2")
    run = json.loads((at / "runs" / "toy" / name / "run.json").read_text(encoding="utf-8"))
    assert run["overrides"] == [*FAKE, "seed=2", "until=corpus"]
    assert run["config"]["objective"]["terms"]["kd"]["term"]["temperature"] == 1.0
    assert set(run["steps"]) == {"corpus", "student"}
    assert (at / "store" / "write_corpus" / run["steps"]["corpus"]["key"] / "manifest.json").exists()
    assert not (at / "store" / "write_student").exists()
    capsys.readouterr()
    assert main([*FAKE, "seed=2", "dry_run=true"]) == 0
    assert [line.split()[-1] for line in capsys.readouterr().out.splitlines()] == ["state", "reuse", "run"]
    assert main([*FAKE, "seed=2"]) == 0
    assert (at / "store" / "write_student" / run["steps"]["student"]["key"] / "made.txt").exists()
    assert sorted(path.name for path in at.iterdir()) == ["runs", "store"]


def test_a_sweep_runs_every_point_and_fails_if_one_does(at: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["-m", *FAKE, "seed=13,14"]) == 1
    assert len(folders(at, "seed=13")) == len(folders(at, "seed=14")) == 1
    assert len(list((at / "store" / "write_student").glob("*/made.txt"))) == 1
    assert main(["-m", *FAKE, "seed=14", "temperature=1,2"]) == 0
    assert len(list((at / "store" / "write_student").glob("*/made.txt"))) == 2
    error = capfd.readouterr().err
    assert "13 is unlucky" in error
    assert "Traceback" not in error
    assert {path.name for path in at.iterdir()} == {"runs", "store"}


def test_a_sweeps_mistakes_are_found_before_it_starts(at: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-m", "temperature=0,1,-1", "student=toy_1x1,nosuch", "dry_run=true"]) == 1
    error = capsys.readouterr().err
    assert "3 problems" in error
    assert error.count("nosuch does not exist") == 1
    assert main(["-m", "recipe=train_only", "objective=nll", "weight_kd=2,3", "dry_run=true"]) == 1
    assert "weight_kd" in capsys.readouterr().err
    assert list(at.iterdir()) == []


def test_hydras_own_flags_answer(
    at: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["kdlab.run"])
    own = tmp_path / "own"
    (own / "data").mkdir(parents=True)
    (own / "data" / "mine.yaml").write_text("defaults: [toy, _self_]\nname: mine\n", encoding="utf-8")
    (own / "short.yaml").write_text("defaults: [config, _self_]\nmax_steps: 7\n", encoding="utf-8")
    mine = ["--config-dir", str(own), "data=mine"]
    assert main([*mine, "--cfg", "job", "--resolve"]) == 0
    shown = capsys.readouterr().out
    assert "name: mine" in shown
    assert "src_vocab_size: 1200" in shown
    assert main([*mine, "--config-name", "short", "--cfg", "job"]) == 0
    assert "max_steps: 7" in capsys.readouterr().out
    assert main(["--config-dir", str(own), "--help"]) == 0
    assert "mine" in capsys.readouterr().out
    assert main(["--info", "defaults"]) == 0
    assert "recipe/hybrid" in capsys.readouterr().out
    assert main(["--cfg", "job", "temprature=1"]) == 1
    assert main(["--config-path", "x"]) == 1


def test_a_gpu_that_is_not_there_is_missed_before_any_work(at: Path, capsys: pytest.CaptureFixture[str], monkeypatch):
    monkeypatch.setattr("kdlab.runtime.device", lambda wanted: "cpu")
    assert main(["trainer.device=cuda"]) == 1
    said = capsys.readouterr().err
    assert "trainer.device=cuda, but torch finds no GPU here" in said and "Traceback" not in said
    assert not (at / "store").exists()
