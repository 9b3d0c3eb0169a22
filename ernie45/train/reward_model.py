"""A reward model: a model of the family with a scalar head on an answer's last token, in training and in use.

    scores = RewardModel.load("runs/reward").score([[{"role": "user", ...}, {"role": "assistant", ...}], ...])

Knows nothing about losses, or what its scores are used for.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ernie45.checkpoint import load_model, resolve_model
from ernie45.checkpoint.tensor_file import OpenFiles, make_header, read_header
from ernie45.config.errors import CheckpointError, MediaError, RequestError
from ernie45.config.inputs import ModelInput
from ernie45.config.reward_model import RewardModelConfig
from ernie45.config.train import RouterConfig
from ernie45.data.preference import PreferenceBatch
from ernie45.model.batch import pack
from ernie45.model.moe import RouterOutput
from ernie45.model.multimodal import ErnieModel
from ernie45.processor import Processor
from ernie45.train.objectives.loss import Loss
from ernie45.train.objectives.reward_model import init_reward_head, reward_model_loss
from ernie45.train.objectives.routing import gradient_only, router_losses
from ernie45.train.storage import write_atomically

HEAD_FILE = "reward_head.safetensors"
"""Beside a model's files: the head's weights, fp32 [1, D] under the name `weight`."""
_TOKENS_PER_PASS = 4096


class RewardOutputs(NamedTuple):
    """rewards_B2: of the chosen and of the rejected answers. routers of every MoE layer."""

    rewards_B2: Tensor
    routers: list[list[RouterOutput]]


class RewardSettings(NamedTuple):
    """What the objective is told."""

    reward: RewardModelConfig
    router: RouterConfig


def new_reward_head(hidden_size: int, seed: int) -> nn.Linear:
    """A head with small random weights; no bias, which would cancel out of every pair."""
    head = nn.Linear(hidden_size, 1, bias=False)
    init_reward_head(head.weight, torch.Generator().manual_seed(seed))
    return head


def rewards_of(hidden_TD: Tensor, head: nn.Module, rows_R: Tensor) -> Tensor:
    """fp32 [R]: the head on these rows of the last hidden states."""
    # fp32 also where the step's weights are bf16: rewards are compared, and their differences are small.
    return F.linear(hidden_TD.index_select(0, rows_R).float(), head.get_parameter("weight").float())[:, 0]


def reward_forward(modules: Mapping[str, Any] | nn.ModuleDict, batch: PreferenceBatch) -> RewardOutputs:
    """Rewards of both answers of all pairs, by modules["model"] and modules["head"]."""
    out = modules["model"](batch.packed)
    rewards_R = rewards_of(out.hidden_TD, modules["head"], batch.last_rows_B2.flatten())
    return RewardOutputs(rewards_R.view(-1, 2).clone(), out.routers)  # what a sharded model gives on must not be a view


def reward_objective(outputs: RewardOutputs, batch: PreferenceBatch, settings: RewardSettings) -> Loss:
    """`reward_model_loss` plus router losses (gradient only)."""
    share = batch.language.share
    loss = reward_model_loss(outputs.rewards_B2, batch.margins_B, (batch.pair_weight, share), settings.reward)
    return Loss(gradient_only(loss.loss, router_losses(outputs.routers, settings.router, share)), loss.metrics)


class RewardModel:
    """A trained reward model, for scoring. Not for several threads at a time."""

    def __init__(self, model: ErnieModel, head: nn.Module, processor: Processor) -> None:
        self.model, self.head, self.processor = model, head, processor

    @classmethod
    def load(cls, folder: str | Path) -> "RewardModel":
        """From a folder that `train reward` made. CheckpointError if the model or its head is missing or damaged."""
        path = resolve_model(folder)
        model = load_model(path, dtype=torch.float32)
        return cls(model, read_reward_head(path, model.config.hidden_size), Processor.from_dir(path))

    @torch.no_grad()
    def score(self, conversations: Sequence[Sequence[Mapping[str, Any]]]) -> list[float]:
        """The reward of each conversation's last answer, its thoughts (`reasoning_content`) included, in the given order.

        Rewards compare answers to one prompt; their zero and unit are those of the pairs it was trained on. RequestError or
        MediaError, with the conversation's number, for one that cannot be read, does not end with an answer, or is too long.
        """
        inputs = [self._encode(number, messages) for number, messages in enumerate(conversations)]
        scores = [0.0] * len(inputs)
        for places in _passes([len(item) for item in inputs]):
            packed = pack([inputs[place] for place in places])
            hidden_TD = self.model(packed).hidden_TD
            rewards_R = rewards_of(hidden_TD, self.head, torch.tensor(packed.cu_seqlens[1:]) - 1)
            for place, reward in zip(places, rewards_R.tolist(), strict=True):
                scores[place] = reward
        return scores

    def _encode(self, number: int, messages: Sequence[Mapping[str, Any]]) -> ModelInput:
        if not messages or messages[-1].get("role") != "assistant":
            raise RequestError(f"conversation {number} must end with a message of the assistant, which is what is scored")
        thinking = bool(messages[-1].get("reasoning_content"))
        try:
            inputs = self.processor.encode_chat(messages, enable_thinking=thinking, add_generation_prompt=False)
        except (RequestError, MediaError) as error:
            raise type(error)(f"conversation {number}: {error}") from error
        longest = self.model.config.max_position_embeddings
        if len(inputs) > longest:
            raise RequestError(
                f"conversation {number} has {len(inputs)} tokens, more than the context of {longest}; shorten it"
            )
        return inputs


def write_reward_head(head: nn.Module, folder: Path) -> None:
    """`HEAD_FILE` into a model folder. StorageError if it cannot be."""
    weight = head.get_parameter("weight").detach().float().cpu().numpy()
    header = make_header({"weight": ("F32", weight.shape)}, "pt")
    write_atomically(folder / HEAD_FILE, header + np.ascontiguousarray(weight).tobytes())


def read_reward_head(folder: Path, hidden_size: int) -> nn.Linear:
    """The head of a folder. CheckpointError if it has none, or one of another size."""
    file = folder / HEAD_FILE
    if not file.is_file():
        raise CheckpointError(f"reward model ({folder}) has no {HEAD_FILE}; give a folder that `ernie45 train reward` made")
    tensors = read_header(file)
    found = tensors.get("weight")
    if found is None or found.dtype != "F32" or found.shape != (1, hidden_size):
        raise CheckpointError(f"{file} must hold one tensor `weight`, F32 [1, {hidden_size}]; train the reward model again")
    raw = bytearray(found.num_bytes)
    with OpenFiles(frozenset([file])) as files:
        files.read(file, found.begin, memoryview(raw))
    head = nn.Linear(hidden_size, 1, bias=False)
    head.weight.data = torch.frombuffer(raw, dtype=torch.float32).view(found.shape)
    return head.requires_grad_(False)


def _passes(lengths: Sequence[int]) -> list[list[int]]:
    """Places in groups of like length and at most `_TOKENS_PER_PASS` tokens, one at least."""
    passes: list[list[int]] = []
    total = 0
    for place in sorted(range(len(lengths)), key=lengths.__getitem__):
        if passes and total + lengths[place] <= _TOKENS_PER_PASS:
            passes[-1].append(place)
            total += lengths[place]
        else:
            passes.append([place])
            total = lengths[place]
    return passes
