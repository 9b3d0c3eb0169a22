"""Prefill and decode of the text backbone against llama.cpp: the same random bf16 weights, one of them as GGUF, same threads.

Knows nothing about how either side works. Run: `python -m bench.llamacpp [--threads 1] [--runs 5] [--llama-python PYTHON]`.

llama-cpp-python may live in another environment: `--llama-python` names its interpreter. The two take turns. On one thread CPU
time is what counts, since it leaves out other load on the machine. First both must agree on the logits after a prompt.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import gguf  # pyright: ignore[reportMissingImports]
import numpy as np
import torch
from torch import Tensor

from bench.report import write_result
from bench.shapes import text_moe_2b
from ernie45.config.engine import EngineConfig
from ernie45.config.inputs import ModelInput
from ernie45.config.model import ModelConfig
from ernie45.config.parameters import count_active
from ernie45.config.sampling import SamplingParams
from ernie45.engine.llm import LLM
from ernie45.model.moe import FeedForward
from ernie45.model.multimodal import ErnieModel

NUM_PROMPT, NUM_GENERATED, CONTEXT = 2048, 33, 2304
ARCHITECTURE = gguf.MODEL_ARCH.ERNIE4_5_MOE


def write_gguf(model: ErnieModel, path: Path) -> None:
    """The model as llama.cpp reads it: BF16 matrices, fp32 norms and routers, no vocabulary."""
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[ARCHITECTURE])
    _add_settings(writer, model.config)
    for name, tensor in _tensors(model):
        if tensor.dtype == torch.bfloat16 and tensor.ndim > 1:
            # GGUF's writer counts a BF16 row in bytes.
            data = tensor.detach().contiguous().view(torch.uint8).numpy()
            writer.add_tensor(name, data, raw_dtype=gguf.GGMLQuantizationType.BF16)
        else:
            writer.add_tensor(name, tensor.detach().float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_settings(writer: gguf.GGUFWriter, config: ModelConfig) -> None:
    pool = config.expert_pools[0]
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_expert_count(pool.num_experts)
    writer.add_expert_used_count(pool.num_active)
    writer.add_expert_feed_forward_length(pool.ffn_size)
    writer.add_expert_shared_feed_forward_length(config.shared_ffn_size)
    writer.add_expert_shared_count(1)
    writer.add_interleave_moe_layer_step(config.moe_layer_interval)
    writer.add_leading_dense_block_count(config.first_moe_layer)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("none")


def _tensors(model: Any) -> list[tuple[str, Tensor]]:
    config = model.config
    sizes = [config.num_heads * config.head_dim] + 2 * [config.num_kv_heads * config.head_dim]
    found = [("token_embd.weight", model.embed_tokens.weight), ("output_norm.weight", model.norm.weight)]
    if model.lm_head is not None:
        found.append(("output.weight", model.lm_head.weight))
    for index, block in enumerate(model.layers):
        place = f"blk.{index}."
        q, k, v = block.self_attn.qkv_proj.weight.split(sizes)
        named = [("attn_q", q), ("attn_k", k), ("attn_v", v), ("attn_output", block.self_attn.o_proj.weight)]
        named += [("attn_norm", block.input_layernorm.weight), ("ffn_norm", block.post_attention_layernorm.weight)]
        found += [(f"{place}{name}.weight", tensor) for name, tensor in named]
        found += [(place + name, tensor) for name, tensor in _feed_forward(block.mlp)]
    return found


def _feed_forward(mlp: Any) -> list[tuple[str, Tensor]]:
    if isinstance(mlp, FeedForward):
        return _dense(mlp, "")
    pool = mlp.pools["text"]
    gate_EFD, up_EFD = pool.gate_up_weight.chunk(2, dim=1)
    found = [("ffn_gate_exps.weight", gate_EFD), ("ffn_up_exps.weight", up_EFD), ("ffn_down_exps.weight", pool.down_weight)]
    found += [("ffn_gate_inp.weight", pool.router.weight), ("exp_probs_b.bias", pool.router.correction_bias)]
    return found + (_dense(mlp.shared, "_shexp") if mlp.shared is not None else [])


def _dense(mlp: FeedForward, suffix: str) -> list[tuple[str, Tensor]]:
    gate_FD, up_FD = mlp.gate_up_proj.weight.chunk(2)
    named = (("gate", gate_FD), ("up", up_FD), ("down", mlp.down_proj.weight))
    return [(f"ffn_{name}{suffix}.weight", tensor) for name, tensor in named]


class Peer:
    """llama.cpp in a process of its own."""

    def __init__(self, python: str, path: Path, threads: int) -> None:
        command = [python, str(Path(__file__).with_name("llamacpp_worker.py")), str(path), str(CONTEXT), str(threads)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.version = self._read()["version"]

    def run(self, token_ids: list[int], num_generated: int) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"token_ids": token_ids, "num_generated": num_generated}) + "\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "llama.cpp's process ended; see its messages above"
        return json.loads(line)


def our_decode(llm: LLM, inputs: ModelInput, clock: int) -> float:
    """Seconds of one decoded token. clock: 0 for CPU time, 1 for wall time."""
    clocks = []
    for event in llm.stream(inputs, SamplingParams(temperature=0, max_tokens=NUM_GENERATED)):
        clocks.append(_clocks()[clock])
        if event.finish_reason is not None:
            break
    return (clocks[-1] - clocks[0]) / (NUM_GENERATED - 1)


def our_prefill(llm: LLM, inputs: ModelInput, clock: int) -> float:
    start = _clocks()[clock]
    llm.generate([inputs], SamplingParams(temperature=0, max_tokens=1))
    return _clocks()[clock] - start


def _clocks() -> tuple[float, float]:
    return time.process_time(), time.perf_counter()


def bandwidth(threads: int, clock: int) -> float:
    """Bytes a second of a sum over 1 GB of fp32: what reading weights can reach at most."""
    data = torch.ones(2**28)
    seconds = []
    for _ in range(5):
        start = _clocks()[clock]
        data.sum()
        seconds.append(_clocks()[clock] - start)
    return data.nbytes / min(seconds)


def make_prompt(config: ModelConfig, length: int) -> ModelInput:
    ids = np.random.default_rng(0).integers(3, config.vocab_size, length)
    return ModelInput(
        token_ids=ids,
        is_vision=np.zeros(length, dtype=bool),
        positions=np.repeat(np.arange(length)[:, None], 3, axis=1),
        patches=np.zeros((0, 588), dtype=np.uint8),
        next_position=length,
    )


def check_agreement(model: ErnieModel, peer: Peer, config: ModelConfig) -> float:
    """Largest difference of the logits after a short prompt, over their spread."""
    from ernie45.model.batch import pack

    prompt = make_prompt(config, 32)
    with torch.inference_mode():
        ours_V = model.logits(model(pack([prompt])).hidden_TD[-1:])[0].float()
    theirs_V = torch.tensor(peer.run(prompt.token_ids.tolist(), 1)["logits"])
    difference = float((ours_V - theirs_V).abs().max() / theirs_V.std())
    assert difference < 0.25, f"the two do not compute the same: {difference}"
    return difference


def measure(peer: Peer, llm: LLM, prompt: ModelInput, runs: int, clock: int) -> dict[str, list[float]]:
    """Seconds of each run: prefill and one decoded token, theirs and ours, in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in ("their prefill", "our prefill", "their decode", "our decode")}
    ids = prompt.token_ids.tolist()
    for _ in range(runs):
        theirs = peer.run(ids, NUM_GENERATED)
        seconds["their prefill"].append(theirs["prefill"][clock])
        seconds["their decode"].append(theirs["decode"][clock] / (NUM_GENERATED - 1))
        seconds["our prefill"].append(our_prefill(llm, prompt, clock))
        seconds["our decode"].append(our_decode(llm, prompt, clock))
    return seconds


def compare(peer: Peer, llm: LLM, runs: int, threads: int) -> tuple[list[dict[str, object]], str]:
    """The table, and what to know of it."""
    clock = 0 if threads == 1 else 1
    config = llm.model.config
    seconds = measure(peer, llm, make_prompt(config, NUM_PROMPT), runs, clock)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    active_bytes, limit = 2 * count_active(config), bandwidth(threads, clock)
    phases = (("prefill", f"{NUM_PROMPT} tokens", NUM_PROMPT), ("decode", f"batch 1, behind {NUM_PROMPT} tokens", 1))
    shares = {"prefill": "", "decode": f"{active_bytes / median['our decode'] / limit:.0%}"}
    rows = [
        {
            "phase": f"{phase}, {what}",
            "llama.cpp tokens/s": num_tokens / median[f"their {phase}"],
            "ernie45 tokens/s": num_tokens / median[f"our {phase}"],
            "ratio": median[f"their {phase}"] / median[f"our {phase}"],
            "ernie45, share of memory bandwidth": shares[phase],
        }
        for phase, what, num_tokens in phases
    ]
    note = (
        f"model: `text_moe_2b` (`bench/shapes.py`), {active_bytes / 1e9:.2f} GB of weights active for a token, random; "
        f"memory bandwidth, a sum over 1 GB: {limit / 1e9:.1f} GB/s; "
        f"seconds are {('CPU', 'wall')[clock]} time, medians of {runs} runs in turns"
    )
    return rows, note


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--llama-python", default=sys.executable, help="an interpreter that has llama-cpp-python")
    parser.add_argument("--dry-run", action="store_true", help="print the table, write no file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = ErnieModel(text_moe_2b(), dtype=torch.bfloat16).eval().requires_grad_(False)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        write_gguf(model, path)
        peer = Peer(args.llama_python, path, args.threads)
        difference = check_agreement(model, peer, model.config)
        engine = EngineConfig(num_pages=CONTEXT // 16, max_num_seqs=1, prefix_cache=False)
        rows, note = compare(peer, LLM(model, engine), args.runs, args.threads)
        peer.close()
    for row in rows:
        print({key: round(value, 2) if isinstance(value, float) else value for key, value in row.items()})
    if not args.dry_run:
        notes = [
            f"llama-cpp-python {peer.version} (GGUF BF16), {args.threads} thread(s) each",
            note,
            f"logits after 32 tokens differ by {difference:.3f} of their standard deviation at most",
        ]
        print(write_result("llamacpp", "Text backbone against llama.cpp", rows, notes=notes))


if __name__ == "__main__":
    main()
