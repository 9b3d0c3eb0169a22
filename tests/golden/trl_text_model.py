"""One DPO step of TRL's real trainer on a small text model of transformers: what our whole step is compared with.

Needs trl; run as a program it writes `text_model.json` beside itself, with the versions that made it:

    python -m tests.golden.trl_text_model

Weights are not stored: both sides draw them from a seed (`text_model`). Knows nothing about ernie45's training.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

GOLDEN = Path(__file__).with_name("text_model.json")
TOKENIZER = Path(__file__).parents[2] / "ernie45" / "assets" / "tiny" / "tokenizer.json"
POLICY_SEED, REFERENCE_SEED = 1, 2
PAIRS = [
    {"prompt": "What is 2+3?", "chosen": " It is 5.", "rejected": " It is 17, I think."},
    {"prompt": "What colour is the sky on a clear day?", "chosen": " blue", "rejected": " green"},
    {"prompt": "Reverse 407.", "chosen": " 704", "rejected": " 4 0 7"},
]
SETTINGS = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.4], "beta": 0.3}


def text_model(seed: int) -> Any:
    """transformers' text model with experts, two layers, weights drawn in the order of their names."""
    import transformers

    config = transformers.Ernie4_5_MoeConfig(
        vocab_size=512,
        hidden_size=32,
        intermediate_size=48,
        moe_intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        moe_num_experts=4,
        moe_k=2,
        moe_num_shared_experts=1,
        moe_layer_start_index=1,
        moe_layer_end_index=1,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )
    model = transformers.Ernie4_5_MoeForCausalLM(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if parameter.ndim == 1 and name.endswith("weight"):
                parameter.uniform_(0.5, 1.5, generator=generator)
            else:
                scale = 0.05 if "correction_bias" in name else parameter.shape[-1] ** -0.5
                parameter.normal_(0, scale, generator=generator)
    return model


def fingerprints(folder: Path) -> dict[str, list[float]]:
    """Of every tensor in a checkpoint folder: its norm, and its product with random numbers."""
    from safetensors.torch import load_file

    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        for name, tensor in sorted(load_file(file).items()):
            found[name] = [tensor.norm().item(), projection(tensor)]
    return found


def projection(tensor: Tensor) -> float:
    """The product with a vector that depends on the shape alone."""
    numbers = torch.randn(tensor.numel(), generator=torch.Generator().manual_seed(tensor.numel()), dtype=torch.float64)
    return float(tensor.flatten().double() @ numbers)


def main() -> None:
    """Write the golden file."""
    import transformers
    import trl
    from datasets import Dataset

    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(TOKENIZER), eos_token="</s>", pad_token="<unk>")
    model = text_model(POLICY_SEED)
    with tempfile.TemporaryDirectory() as folder:
        arguments = trl.DPOConfig(
            output_dir=folder, use_cpu=True, report_to="none", per_device_train_batch_size=len(PAIRS), max_length=None,
            bf16=False, gradient_checkpointing=False, router_aux_loss_coef=0.0, **SETTINGS,
        )  # fmt: skip
        trainer = trl.DPOTrainer(
            model, ref_model=text_model(REFERENCE_SEED), args=arguments, train_dataset=Dataset.from_list(PAIRS),
            processing_class=tokenizer,
        )  # fmt: skip
        rows = [trainer.train_dataset[index] for index in range(len(PAIRS))]
        inputs = trainer.data_collator(rows)
        trainer.model.eval()
        loss = trainer.compute_loss(trainer.model, inputs)
        loss.backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
        model.save_pretrained(folder)
        gradients = fingerprints(Path(folder))
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    data = {
        "versions": {"trl": trl.__version__, "transformers": transformers.__version__, "torch": torch.__version__},
        "pairs": [{name: row[name] for name in names} for row in rows],
        "loss": loss.item(),
        "metrics": {name: values[-1] for name, values in trainer._metrics["eval"].items() if name.startswith(("rew", "log"))},
        "gradients": gradients,
    }
    GOLDEN.write_text(json.dumps(data) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
