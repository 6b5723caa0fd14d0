"""Loggers before anything runs: what is refused, and how `auto` chooses; the dashboard as JSON."""

import json
import socket

import pytest
import wandb

from kdlab import dashboard, logger_checks
from kdlab.compose import compose
from kdlab.errors import ConfigError, UserError
from kdlab.training.wandb_logger import choose_mode

KEY = "5ec2e7" * 6 + "5ec2"


def problems(*overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        compose(list(overrides))
    assert KEY not in str(caught.value)
    return caught.value.problems


@pytest.mark.parametrize(
    "override, path",
    [
        ("+logger.comet={_target_: lightning.pytorch.loggers.CSVLogger, save_dir: x, name: '${oc.env:A_TOKEN}'}",
         "logger.comet.name"),
        ("+logger.comet={_target_: lightning.pytorch.loggers.CometLogger, api_key: abc}", "logger.comet.api_key"),
        (f"cluster.setup=['module load cuda','export WANDB_API_KEY={KEY}']", "cluster.setup.1"),
    ],
)  # fmt: skip
def test_a_secret_in_the_configuration_is_refused_and_not_shown(override, path, monkeypatch):
    monkeypatch.setenv("A_TOKEN", KEY)
    (found,) = [problem for problem in problems(override) if "run.json" in problem]
    assert found.startswith(f"{path} holds") and KEY not in found


def test_a_setup_that_reads_a_secret_is_allowed():
    cfg = compose(["cluster.setup=['export WANDB_API_KEY=$(cat ~/.key)']"]).cfg
    assert list(logger_checks.secrets(cfg, {})) == []


def test_tags_modes_and_missing_packages_are_known_before_anything_runs(monkeypatch):
    assert any("tag of 65 characters" in found for found in problems("logger=wandb", f"logger.wandb.tags=[{'a' * 65}]"))
    (mode,) = problems("logger=wandb", "logger.wandb.mode=maybe")
    assert "logger.wandb.mode must be one of auto, online, offline, disabled" in mode
    assert compose(["logger=tensorboard"]).cfg.logger.tensorboard is not None
    monkeypatch.setattr(logger_checks, "find_spec", lambda name: None)
    (found,) = problems("logger=tensorboard")
    assert "pip install 'kdlab[tensorboard]'" in found


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A machine that answers, and W&B's settings to be read anew."""
    for name in ("WANDB_MODE", "WANDB_API_KEY", "SLURM_JOB_ID", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))
    wandb.teardown()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{listening.getsockname()[1]}")
        yield listening
    wandb.teardown()


def test_auto_is_online_with_key_and_network_alone(server, monkeypatch):
    assert choose_mode("auto") == ("offline", "no key: `wandb login` asks for one")
    wandb.teardown()
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert choose_mode("auto")[0] == "online"
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert choose_mode("auto")[0] == "offline" and choose_mode("online")[0] == "online"
    for asked, mode in {"online": "online", "disabled": "disabled", "dryrun": "offline", "run": "online"}.items():
        monkeypatch.setenv("WANDB_MODE", asked)
        assert choose_mode("auto") == (mode, f"WANDB_MODE={mode}")
    monkeypatch.setenv("WANDB_MODE", "shared")
    with pytest.raises(UserError, match="WANDB_MODE=shared is no mode"):
        choose_mode("auto")
    monkeypatch.delenv("WANDB_MODE"), monkeypatch.delenv("SLURM_JOB_ID")
    server.close()
    assert choose_mode("auto")[1].startswith("no network to http://127.0.0.1")


def test_a_proxy_on_the_way_is_what_must_answer(server, monkeypatch):
    monkeypatch.setenv("WANDB_BASE_URL", "http://wandb.invalid")
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.getsockname()[1]}")
    assert choose_mode("auto")[1].startswith("no key")


@pytest.mark.filterwarnings("ignore:Pydantic V1 style:DeprecationWarning")  # wandb-workspaces' own
def test_the_dashboard_has_its_sections_and_plots_what_is_logged(capsys):
    assert dashboard.main(["logger.wandb.project=mine", "logger.wandb.entity=us", "dry_run=true"]) == 0
    view = json.loads(capsys.readouterr().out)
    assert (view["entity"], view["project"], view["displayName"]) == ("us", "mine", "kdlab")
    section = view["spec"]["section"]
    panels = {bank["name"]: bank["panels"] for bank in section["panelBankConfig"]["sections"]}
    wanted = ["training", "temperature", "mixing", "size against quality", "system", "translations"]
    assert list(panels)[: len(wanted)] == wanted
    kinds = {name: [panel["viewType"] for panel in panels[name]] for name in wanted}
    assert kinds["temperature"] == ["Scatter Plot", "Bar Chart", "Run History Line Plot"]
    scatter = panels["temperature"][0]["config"]
    assert (scatter["xAxis"], scatter["yAxis"]) == ("config:temperature.value", "summary:best/bleu")
    size = panels["size against quality"][0]["config"]
    assert (size["xAxis"], size["yAxis"], size["xAxisLogScale"]) == ("summary:parameters", "summary:best/bleu", True)
    assert [panel["config"]["metrics"] for panel in panels["system"]] == [
        ["train/tokens_per_s"], ["train/peak_memory_mib"],
    ]  # fmt: skip
    assert "jobType" in json.dumps(section["runSets"])


def test_the_dashboard_is_not_pushed_without_a_key(capsys, server):
    assert dashboard.main([]) == 1
    assert "run `wandb login` once" in capsys.readouterr().err
