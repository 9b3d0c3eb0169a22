"""What a trainer of mixtures of experts looks at in every step: loads of both pools, routers' health, tokens, speed, memory.

Knows nothing about losses, stages or where entries go. Counts are added over shards and processes before they are divided.
"""

import resource
import sys
import time
from typing import Any

import torch
from torch import Tensor

from ernie45.config.model import ModelConfig
from ernie45.config.parameters import count_active, parameter_parts
from ernie45.model.batch import PackedBatch
from ernie45.model.moe import ExpertPool, RouterOutput
from ernie45.model.multimodal import ErnieModel
from ernie45.train.routing import max_violation, orthogonal_loss, pools_of

TABLE_EVERY = 25
"""Steps between two tables of every expert's load in the log."""
_TEXT, _VISION, _PATCHES, _PICTURES, _ENTROPY = range(5)


class StepMeter:
    """Counts of one step. The loop calls `begin`, `add` for each shard, sums `parts` over processes, then reads `entry`.

    usage: tokens per expert [E] of every pool, in the order of `pools_of`.
    """

    def __init__(self, model: ErnieModel, peak_flops: float | None = None) -> None:
        """peak_flops: of all processes' devices together, for the model FLOPs utilisation; None: measured when first needed."""
        self._model = model
        self._pools: list[tuple[str, ExpertPool]] = list(pools_of(model))
        self.usage = [torch.zeros(pool.config.num_experts) for _, pool in self._pools]
        self._counts = torch.zeros(_ENTROPY + len(self._pools), dtype=torch.float32)
        self._wanted = [0] * len(self._pools)
        self._peak_flops = peak_flops

    def begin(self) -> None:
        """A new step: all counts are 0."""
        self._counts.zero_()
        self._wanted = [0] * len(self._pools)
        for usage_E in self.usage:
            usage_E.zero_()

    def add(self, batch: Any, outputs: Any) -> None:
        """Count a shard. Whatever a stage's outputs are: routers and packed tokens are taken from where they have them."""
        packed = getattr(batch, "packed", None)
        vision = packed.vision if isinstance(packed, PackedBatch) else getattr(batch, "vision", None)
        if isinstance(packed, PackedBatch):
            self._counts[_TEXT] += packed.text_rows.count
            self._counts[_VISION] += packed.vision_rows.count
        if vision is not None:
            self._counts[_PATCHES] += len(vision.patches_PC)
            self._counts[_PICTURES] += len(vision.grids)
        routers = routers_of(outputs)
        # A stage may run another decoder than the model's; then there is nothing to say about these pools.
        if routers is not None and len(routers) * len(routers[0] if routers else ()) == len(self._pools):
            self._add_routers([router for layer in routers for router in layer])

    def parts(self) -> list[Tensor]:
        """Vectors to be summed over processes, in place. Called once a step, after the last shard."""
        for (name, _), usage_E, wanted in zip(self._pools, self.usage, self._wanted, strict=True):
            # Nothing is dropped: what reached the experts is every token, A times.
            assert float(usage_E.sum()) == wanted, (name, usage_E, wanted)
        return [*self.usage, self._counts]

    def entry(self, step: int, seconds: float, processes: int) -> dict[str, Any]:
        """What is logged. step: over the run. seconds: of the step, by the wall. processes: that shared it."""
        tokens = float(self._counts[_TEXT] + self._counts[_VISION])
        entry: dict[str, Any] = {
            "tokens": tokens,
            "tokens_text": float(self._counts[_TEXT]),
            "tokens_vision": float(self._counts[_VISION]),
            "patches": float(self._counts[_PATCHES]),
            "pictures": float(self._counts[_PICTURES]),
            "tokens_per_second": tokens / max(seconds, 1e-9),
            "memory": memory_in_use(),
        }
        if self._peak_flops is None:
            self._peak_flops = measured_peak_flops(self._model.device) * processes
        entry["mfu"] = self._flops() / max(seconds, 1e-9) / self._peak_flops
        if any(float(usage_E.sum()) for usage_E in self.usage):
            entry |= self._routers(step)
        return entry

    @torch.no_grad()
    def _add_routers(self, routers: list[RouterOutput]) -> None:
        for place, router in enumerate(routers):
            self.usage[place] += router.tokens_per_expert_E.to(self.usage[place])
            self._wanted[place] += router.experts_RA.numel()
            if len(router.logits_RE):
                logs_RE = router.logits_RE.detach().log_softmax(-1)
                self._counts[_ENTROPY + place] -= (logs_RE.exp() * logs_RE).sum().to(self._counts)

    def _routers(self, step: int) -> dict[str, Any]:
        """By pool: worst violation over layers, mean entropy as a share of the largest, mean orthogonality; tables at times."""
        entry: dict[str, Any] = {}
        for modality in dict.fromkeys(pool.config.modality for _, pool in self._pools):
            places = [place for place, (_, pool) in enumerate(self._pools) if pool.config.modality == modality]
            if not any(float(self.usage[place].sum()) for place in places):
                continue
            entry[f"{modality}_violation"] = max(max_violation(self.usage[place]) for place in places)
            entropies, orthogonality = [], []
            for place in places:
                pool = self._pools[place][1]
                tokens = float(self.usage[place].sum()) / pool.config.num_active
                highest = torch.tensor(float(pool.config.num_experts)).log()
                entropies.append(float(self._counts[_ENTROPY + place] / max(tokens, 1) / highest.clamp_min(1e-9)))
                orthogonality.append(float(orthogonal_loss(pool.router.weight.detach().float())))
            entry[f"{modality}_entropy"] = sum(entropies) / len(entropies)
            entry[f"{modality}_orthogonality"] = sum(orthogonality) / len(orthogonality)
            if step % TABLE_EVERY == 0:
                entry[f"{modality}_load"] = [_shares(self.usage[place]) for place in places]
        return entry

    def _flops(self) -> float:
        """Of the step so far as counted: forward and backward of decoder and tower."""
        return step_flops(
            self._model.config, float(self._counts[_TEXT]), float(self._counts[_VISION]), float(self._counts[_PATCHES])
        )


def routers_of(outputs: Any) -> list[list[RouterOutput]] | None:
    """The routers of a stage's outputs, or of its `language` outputs; None if there are none."""
    routers = getattr(outputs, "routers", None)
    return getattr(getattr(outputs, "language", None), "routers", None) if routers is None else routers


def step_flops(config: ModelConfig, text_tokens: float, vision_tokens: float, patches: float) -> float:
    """Floating-point operations of forward and backward: 6 for each weight that a token (a patch) multiplies with.

    Decoder: `count_active` of the token's modality; tower and resampler: all their weights, the resampler's once for every
    visual token. Attention over the context, recomputation and the optimiser are left out, as in Kaplan et al. (2020); a phase
    with frozen weights does less than this.
    """
    decoder = sum(
        6 * tokens * count_active(config, modality) for modality, tokens in (("text", text_tokens), ("vision", vision_tokens))
    )
    parts = {part.name: part.num_params for part in parameter_parts(config)}
    merged = patches / config.vision.spatial_merge_size**2 if config.vision is not None else 0
    return decoder + 6 * (patches * parts.get("ViT", 0) + merged * parts.get("resampler", 0))


def measured_peak_flops(device: torch.device, seconds: float = 0.1) -> float:
    """Operations a second of this process in fp32 products (bf16 on an accelerator) of 1024 x 1024, the best of those tried.

    On a CPU by processor time, so that a busy machine does not make its peak look low and the utilisation high.
    """
    on_cpu = device.type == "cpu"
    size, dtype = 1024, torch.float32 if on_cpu else torch.bfloat16
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    clock, threads = (time.process_time, torch.get_num_threads()) if on_cpu else (time.perf_counter, 1)
    best, started = 0.0, time.perf_counter()
    while time.perf_counter() - started < seconds or not best:
        before = clock()
        (a @ b).sum().item()
        best = max(best, 2 * size**3 * threads / max(clock() - before, 1e-9))
    return best


def memory_in_use() -> float:
    """Bytes at most so far: on an accelerator as allocated, else of this process."""
    if torch.cuda.is_available():
        return float(torch.cuda.max_memory_allocated())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak if sys.platform == "darwin" else 1024 * peak)


def _shares(usage_E: Tensor) -> list[float]:
    """Of the pool's tokens, by expert, with four digits."""
    total = max(float(usage_E.sum()), 1.0)
    return [round(float(count) / total, 4) for count in usage_E]
