"""Reinforcement learning through the one runner, on generated sums; shortened to seconds."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ernie45.checkpoint import load_model
from ernie45.config.errors import ConfigError, DataError
from ernie45.recipes import runner
from ernie45.train.storage import load_checkpoint, read_metrics

SHORT = {
    "schedule.num_steps": "4",
    "schedule.warmup_steps": "0",
    "rollout.prompts": "3",
    "rollout.group_size": "4",
    "rollout.updates": "2",
    "rollout.temperature": "1.6",
    "rollout.max_tokens": "40",
    "generated.count": "64",
    "prompts.max_refills": "1",
}


@pytest.fixture
def request_(tmp_path: Path) -> runner.Request:
    return runner.Request(stage="rlvr", recipe="tiny", out=tmp_path / "out", model="tiny", overrides=SHORT)


def test_a_run_learns_logs_and_writes_a_model_folder(request_: runner.Request) -> None:
    assert runner.run(request_)
    entry = read_metrics(request_.out / "run")[-1]
    assert 0 < entry["accuracy"] < 1
    assert 0 < entry["prompts_kept"] <= 6
    assert entry["prefix_hits"] > 0.5
    assert entry["mismatch_max"] < 1e-4, "old log-probabilities are those of the trainer before the first update"
    after, before = load_model(request_.out), load_model("tiny")
    pools = {name: parameter for name, parameter in after.named_parameters() if "pools.vision" in name}
    changed = [not torch.equal(parameter, before.get_parameter(name)) for name, parameter in pools.items()]
    assert sum(changed) > len(changed) / 2, "pictures reach the vision experts"


def test_a_stopped_run_goes_on_bit_for_bit_in_the_middle_of_a_rollout(
    request_: runner.Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert runner.run(replace(request_, overrides=SHORT | {"prompts.order": "difficulty"}))
    whole = load_checkpoint(request_.out / "run")
    other = replace(request_, out=request_.out.parent / "other", overrides=SHORT | {"prompts.order": "difficulty"})
    for stop_at in (1, 2):  # after the first of a rollout's two updates, then between two rollouts
        monkeypatch.setattr("ernie45.train.stop.StopFlag.is_set", lambda self: True)
        assert not runner.run(other), stop_at
    monkeypatch.undo()
    assert runner.run(other)
    parts = load_checkpoint(other.out / "run")
    assert whole is not None
    assert parts is not None
    assert whole["step"] == parts["step"] == 4
    assert all(torch.equal(parts["parameters"][name], value) for name, value in whole["parameters"].items())
    assert torch.equal(parts["stateful"]["rlvr.policy"]["table"]["asked"], whole["stateful"]["rlvr.policy"]["table"]["asked"])


def test_one_process_and_two_make_the_same_run(request_: runner.Request) -> None:
    overrides = SHORT | {"schedule.num_steps": "3", "policy.kl_weight": "0.01", "rewards.normalise": "running"}
    states = []
    for processes in (1, 2):
        out = request_.out.parent / str(processes)
        assert runner.run(replace(request_, stage="upo", out=out, processes=processes, overrides=overrides))
        states.append(load_checkpoint(out / "run"))
    one, two = states
    assert one is not None
    assert two is not None
    assert one["stateful"]["upo.policy"]["told"] == two["stateful"]["upo.policy"]["told"]
    for name, value in one["parameters"].items():
        assert torch.allclose(two["parameters"][name], value, atol=1e-6), name


def test_prompts_of_ones_own(request_: runner.Request, tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    lines = [{"question": f"What is {number}+{number + 1}?", "answer": 2 * number + 1} for number in range(8)]
    lines.append({"question": "What is nothing?", "answer": ""})
    path.write_text("\n".join(map(json.dumps, lines)))
    overrides = SHORT | {"schedule.num_steps": "2", "rollout.thinking": "off", "prompts.drop_equal": "false"}
    assert runner.run(replace(request_, data=(path,), overrides=overrides))
    entry = read_metrics(request_.out / "run")[-1]
    assert entry["prompts_kept"] == 6
    with pytest.raises(DataError, match=r"mine.jsonl:9 has a prompt without an answer"):
        runner.run(replace(request_, data=(path,), fresh=True, overrides=overrides | {"prompts.on_bad": "stop"}))
    path.write_text(json.dumps(lines[-1]))
    with pytest.raises(DataError, match=r"none of 1 records is a usable prompt.*without an answer"):
        runner.run(replace(request_, data=(path,), fresh=True))


def test_a_critic_learns_beside_the_policy(request_: runner.Request) -> None:
    overrides = SHORT | {
        "policy.advantage": "gae",
        "rollout.group_size": "1",
        "prompts.drop_equal": "false",
        "rollout.prompts": "6",
    }
    assert runner.run(replace(request_, overrides=SHORT | overrides))
    entry = read_metrics(request_.out / "run")[-1]
    assert 0 < entry["value_error"] < 1
    state = load_checkpoint(request_.out / "run")
    assert state is not None
    assert state["parameters"]["critic.outer.weight"].abs().max() > 0


def test_pairs_of_best_and_worst_and_given_ones_in_one_batch(request_: runner.Request) -> None:
    upo = replace(request_, stage="upo")
    overrides = SHORT | {"pairs.source": "both", "pairs.offline": "4", "pairs.generated": "16", "pairs.sft_weight": "0.1"}
    assert runner.run(replace(upo, overrides=overrides | {"pairs.reference": "frozen"}))
    entry = read_metrics(upo.out / "run")[-1]
    assert entry["pair_loss"] > 0
    assert 0 <= entry["pair_accuracy"] <= 1
    assert runner.run(
        replace(upo, fresh=True, overrides=overrides | {"rollout.updates": "1", "rollout.replay_routing": "true"})
    )
    assert read_metrics(upo.out / "run")[-1]["pair_margin"] == 0, "to itself a policy has no log-ratio"


def test_given_pairs_come_from_files(request_: runner.Request, tmp_path: Path) -> None:
    prompts, pairs = tmp_path / "prompts.jsonl", tmp_path / "pairs.jsonl"
    prompts.write_text("\n".join(json.dumps({"question": f"What is {n}+{n}?", "answer": 2 * n}) for n in range(8)))
    sides = [{"prompt": "Say A.", "chosen": "A", "rejected": "B"}, {"prompt": "Say C.", "chosen": "C", "rejected": "D"}]
    pairs.write_text("\n".join(map(json.dumps, sides)))
    overrides = SHORT | {"schedule.num_steps": "2", "pairs.source": "offline", "pairs.offline": "2", "rollout.thinking": "off"}
    upo = replace(request_, stage="upo", data=(prompts, pairs), overrides=overrides | {"prompts.drop_equal": "false"})
    assert runner.describe(upo)["pairs"] == 2
    assert runner.run(upo)
    with pytest.raises(DataError, match="must have preference pairs"):
        runner.run(replace(upo, data=(prompts,), fresh=True))


def test_an_adapter_learns_in_place_of_the_model(request_: runner.Request) -> None:
    overrides = SHORT | {"lora.rank": "4", "policy.kl_weight": "0.1", "optim.lr": "0.05", "schedule.num_steps": "3"}
    assert runner.run(replace(request_, overrides=overrides))
    entry = read_metrics(request_.out / "run")[-1]
    assert entry["kl"] > 0, "the model itself, without the adapter, is the reference"
    assert entry["mismatch_max"] < 1e-4, "the engine answers with the adapter as it is now"
    assert (request_.out / "adapter_model.safetensors").exists()
    with pytest.raises(ConfigError, match="lora.targets must leave out vision_model"):
        runner.run(replace(request_, fresh=True, overrides=overrides | {"lora.targets": "all"}))


def test_settings_that_do_not_fit(request_: runner.Request) -> None:
    for overrides, message in [
        ({"rollout.group_size": "1"}, "group_size \\(1\\) must be at least 2 for policy.advantage=group"),
        ({"policy.ratio": "word"}, "policy.ratio \\('word'\\) must be one of token, sequence"),
        ({"prompts.curriculum": "sum9@0"}, "names domain 'sum9', but the prompts have sum2, sum3, sum4"),
        ({"prompts.curriculum": "sum2@4"}, "must begin @0"),
        ({"generated.skills": "sing"}, "generated.skills \\('sing'\\) must be among"),
        ({"rewards.spec": "guess"}, "guess"),
        ({"lora.rank": "2", "lora.dropout": "0.1"}, "lora.dropout"),
    ]:
        with pytest.raises(ConfigError, match=message):
            runner.run(replace(request_, overrides=SHORT | overrides))
    assert load_checkpoint(request_.out / "run") is None
