"""Frozen configuration dataclasses, presets and the exception tree; imports no torch."""
