"""The model as plain single-device code; nothing here imports torch.distributed."""
