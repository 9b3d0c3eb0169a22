"""The trained judge: what it is shown, and what becomes of answers that it cannot read."""

import shutil
from pathlib import Path

import pytest

import ernie45
from ernie45.config.errors import CheckpointError
from ernie45.config.rewards import RewardsConfig
from ernie45.data.answers import Graded
from ernie45.train.reward_model import RewardModel, new_reward_head, write_reward_head
from ernie45.train.rewards.system import RewardSystem

TINY = Path(ernie45.__file__).parent / "assets" / "tiny"


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def test_a_trained_judge_scores_conversations(tmp_path: Path) -> None:
    folder = tmp_path / "reward"
    shutil.copytree(TINY, folder)
    with pytest.raises(CheckpointError, match="has no reward_head"):
        RewardSystem(RewardsConfig(spec=f"model(path={folder})")).start()
    model = RewardModel.load
    head = new_reward_head(hidden_size_of(folder), seed=3)
    write_reward_head(head, folder)
    messages = [user("What is 2+3?")]
    batch = [
        Graded(answer="5", thoughts="two and three", messages=messages),
        Graded(answer="5", messages=messages),
        Graded(answer="6" * 5000, messages=messages),  # longer than the context
    ]
    answers = [
        {"role": "assistant", "content": "5", "reasoning_content": "two and three"},
        {"role": "assistant", "content": "5"},
    ]
    direct = model(folder).score([[*messages, answer] for answer in answers])
    with RewardSystem(RewardsConfig(spec=f"model(path={folder})", log_events=0)) as rewards:
        scored = rewards.score(batch)
    assert scored.values == pytest.approx([direct[1], direct[1], 0.0], abs=1e-5)
    assert [score.event for score in scored.scores] == ["", "", "raised_request_error"]
    with RewardSystem(RewardsConfig(spec=f"model(path={folder}, thoughts=true)", log_events=0)) as rewards:
        assert rewards.score(batch[:2]).values == pytest.approx(direct, abs=1e-5)
    assert direct[0] != pytest.approx(direct[1], abs=1e-3)


def hidden_size_of(folder: Path) -> int:
    import json

    return json.loads((folder / "config.json").read_text())["hidden_size"]
