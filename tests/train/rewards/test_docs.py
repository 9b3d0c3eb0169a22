"""What docs/rewards.md and docs/evaluation.md say of names, options and commands is so."""

import re
import shlex
from pathlib import Path

from ernie45 import cli
from ernie45.config.rewards import RewardsConfig, parse_spec
from ernie45.train.rewards.registry import REWARDS, build, defaults, reward_class

DOCS = Path(__file__).parents[3] / "docs"


def test_every_judge_is_listed_with_its_options() -> None:
    rows = re.findall(r"^\| `(\w+)` \|.*\| (.*?) \|.*\|$", (DOCS / "rewards.md").read_text(), flags=re.MULTILINE)
    assert {name for name, _ in rows} == set(REWARDS)
    for name, text in rows:
        listed = set(re.findall(r"`(\w+)`", text))
        if name not in ("checklist", "model"):  # the first is "as judge"
            assert listed == set(defaults(reward_class(name))) - ({"workers"} if name == "regex" else set()), name


def test_the_specs_can_be_built() -> None:
    specs = list(re.findall(r"^\| `([^`]+)` \| (?:one|product|weighted|the first)", (DOCS / "rewards.md").read_text(), re.M))
    assert len(specs) == 4
    for spec in specs:
        build(parse_spec(spec)).close()
    values = {"decay": 0.95, "max_event_share": 0.9}
    assert {name: getattr(RewardsConfig(), name) for name in values} == values


def test_the_commands_parse() -> None:
    text = (DOCS / "evaluation.md").read_text()
    commands = [shlex.split(re.sub(r"  +[a-z].*$", "", line)) for line in re.findall(r"^    (ernie45 eval .*)$", text, re.M)]
    assert len(commands) == 6
    assert all(cli.parse(words[1:]).command == "eval" for words in commands)
