"""The end of a run that has trained an adapter: its files, in the run's folder.

Knows nothing about how it was trained.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

from ernie45.checkpoint.adapter_files import CONFIG_FILE
from ernie45.checkpoint.adapter_writer import AdapterForm, write_adapter
from ernie45.config.lora import LoraConfig
from ernie45.recipes.registry import BuildContext
from ernie45.train.loop import Trainer
from ernie45.train.lora import LoraParameters


def adapter_writer(context: BuildContext) -> Callable[[Trainer, Path], None]:
    """(trainer, out) -> None: adapter_model.safetensors, then adapter_config.json, which makes the folder an adapter."""
    lora: LoraConfig = context.config.lora
    base = None if context.source is None else str(context.source)
    form = AdapterForm(rank=lora.rank, alpha=lora.alpha, rslora=lora.rslora, base=base)

    def write(trainer: Trainer, out: Path) -> None:
        adapter = trainer.modules["lora"]
        assert isinstance(adapter, LoraParameters), type(adapter)
        staging = context.folder / "adapter"
        shutil.rmtree(staging, ignore_errors=True)
        write_adapter(staging, adapter.parts(), trainer.model.config, form)
        for file in sorted(staging.iterdir(), key=lambda file: file.name == CONFIG_FILE):
            file.replace(out / file.name)
        staging.rmdir()

    return write
