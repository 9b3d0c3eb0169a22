"""Any stage through the one runner: settings, folder, resuming, refusing, and the model folder at the end."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from torch import nn

from ernie45.checkpoint import load_model
from ernie45.config.errors import CheckpointError, ConfigError
from ernie45.config.train import LoopConfig, OptimConfig, RouterConfig, ScheduleConfig
from ernie45.data.tiny.batches import LanguageBatches, LanguageData
from ernie45.data.tiny.digits import training_digits
from ernie45.recipes import registry, runner
from ernie45.recipes.registry import Assembly, BuildContext, StageKind
from ernie45.train.objectives.language import language_forward, language_loss
from ernie45.train.stage import Stage
from ernie45.train.storage import read_metrics


@dataclass(frozen=True, kw_only=True)
class SumsConfig:
    seed: int = 0
    schedule: ScheduleConfig = field(default_factory=lambda: ScheduleConfig(num_steps=3, warmup_steps=0))
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=1e-3))
    router: RouterConfig = field(default_factory=RouterConfig)
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(num_shards=1, processes=1))


def sums() -> SumsConfig:
    """Sums of text alone."""
    return SumsConfig()


def build(context: BuildContext) -> Assembly:
    config: SumsConfig = context.config
    data = LanguageData(
        name="sums", seed=config.seed, weights={"arithmetic": 1.0}, thinking_share=0.5, whole_text=False, token_budget=200
    )
    stage = Stage(
        name="sums",
        schedule=config.schedule,
        batch=LanguageBatches(data, training_digits("fit"), context.processor),
        forward=lambda modules, batch: language_forward(modules["model"], batch),
        objective=language_loss,
        objective_config=config.router,
        routers=config.router,
    )
    return Assembly(modules=nn.ModuleDict({"model": context.model}), stages=[stage], describe={"num_steps": 3})


@pytest.fixture(autouse=True)
def stage(monkeypatch: pytest.MonkeyPatch) -> None:
    places = {f"{__name__}:build": build, f"{__name__}:sums": sums}
    kind = StageKind("a test", "nothing", f"{__name__}:build", {"sums": f"{__name__}:sums"})
    monkeypatch.setitem(registry.STAGES, "test", kind)
    real = registry.load
    for module in (registry, runner):
        monkeypatch.setattr(module, "load", lambda place: places[place] if place in places else real(place))


@pytest.fixture
def request_(tmp_path: Path) -> runner.Request:
    return runner.Request(stage="test", recipe="sums", out=tmp_path / "out", model="tiny")


def test_a_run_writes_a_model_folder_and_its_settings(request_: runner.Request) -> None:
    assert runner.run(replace(request_, overrides={"optim.lr": "0.002"}))
    model, before = load_model(request_.out), load_model("tiny")
    assert model.dtype == torch.bfloat16
    assert not torch.equal(model.layers[0].mlp.down_proj.weight, before.layers[0].mlp.down_proj.weight)
    settings = json.loads((request_.out / "run" / "settings.json").read_text())
    assert settings["config"]["optim"]["lr"] == 0.002
    assert settings["model"] == "tiny"
    assert read_metrics(request_.out / "run")[-1]["step"] == 2


def test_the_folder_of_other_settings_is_refused_and_says_what_differs(request_: runner.Request) -> None:
    assert runner.run(request_)
    other = replace(request_, overrides={"optim.lr": "0.5"})
    before = (request_.out / "run" / "settings.json").read_bytes()
    with pytest.raises(CheckpointError, match=r"optim.lr: 0.001 -> 0.5\).*--accept-changes"):
        runner.run(other)
    assert (request_.out / "run" / "settings.json").read_bytes() == before
    assert runner.run(replace(request_, overrides={"loop.checkpoint_seconds": "7"})), "free to change"
    assert runner.run(replace(other, accept_changes=True))
    assert runner.run(replace(request_, fresh=True))


def test_a_dry_run_starts_nothing(request_: runner.Request) -> None:
    facts = runner.describe(request_)
    assert (facts["stage"], facts["num_steps"], facts["config"]["optim"]["lr"]) == ("test", 3, 1e-3)
    (router,) = [row for row in facts["parameter_groups"]["sums"] if row["group"] == "text routers"]
    assert router == {
        "group": "text routers",
        "optimizer": "adamw",
        "lr": 1e-3 * 0.4 * 0.4,
        "weight_decay": 0.05,
        "tensors": router["tensors"],
        "parameters": router["parameters"],
    }
    json.dumps(facts)
    assert not request_.out.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stage": "tset"}, "STAGE \\('tset'\\) must be one of .*; did you mean test\\?"),
        ({"recipe": "sum"}, "--recipe of test \\('sum'\\) must be one of sums; did you mean sums\\?"),
        ({"model": None}, "--model must be given for test"),
        ({"data": (Path("/nowhere.jsonl"),)}, "--data \\(/nowhere.jsonl\\) must be a file that exists"),
        ({"eval_data": (Path("/nowhere.jsonl"),)}, "--eval-data \\(/nowhere.jsonl\\) must be a file that exists"),
        ({"overrides": {"optim.rate": "1"}}, "'optim.rate'\\) is unknown"),
    ],
)
def test_bad_requests_are_one_line_and_leave_nothing(request_: runner.Request, changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        runner.run(replace(request_, **changes))
    assert not request_.out.exists()


def test_every_recipe_can_be_listed(request_: runner.Request) -> None:
    assert ("test", "sums", "Sums of text alone.", "nothing") in runner.recipe_table()
