"""Two ranks under torchrun, sharded: the run of one process, stopped and gone on with either number of ranks."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ernie45.train.loop import Run
from ernie45.train.workers import Workers
from tests.train.test_loop import load_program

PROGRAM = Path(__file__).with_name("rank_run.py")
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}


@pytest.mark.slow
def test_two_sharded_ranks_are_the_run_of_one(tmp_path: Path) -> None:
    """1 losses, weights and averages to 2e-5 in fp32, a stop (asked by rank 1) between; 2 a sharded checkpoint goes on in one
    process; 3 bf16 with recomputation follows to 0.05; 4 the modules are whole at the end."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", PROGRAM, tmp_path]
    ranks = subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    program = load_program()
    losses: list[float] = []
    one = program.trainer(Workers())
    one.run(Run(folder=tmp_path / "one", fingerprint=None, on_step=lambda entry: losses.append(entry["loss"])))
    _, errors = ranks.communicate(timeout=240)
    assert ranks.returncode == 0, errors
    found = torch.load(tmp_path / "ranks.pt", weights_only=False)
    assert found["losses"]["sharded"] == pytest.approx(losses, abs=2e-5)
    assert found["losses"]["bf16"] == pytest.approx(losses[: len(found["losses"]["bf16"])], abs=0.05)
    expected = dict(one.modules.named_parameters())
    assert found["parameters"].keys() == expected.keys()
    _close(found["parameters"], expected)
    average = one.averaged_state()
    assert average is not None
    _close(found["average"], average)

    again = program.trainer(Workers())
    state = torch.load(tmp_path / "sharded" / "checkpoint.pt", weights_only=True)
    again.load_state_dict(state)
    _close(again.state_dict()["optimizer"], one.state_dict()["optimizer"])


def _close(found: dict[str, Any], expected: dict[str, Any]) -> None:
    for name, value in expected.items():
        assert torch.allclose(found[name].float(), value.float(), atol=2e-5), name
