"""Text, images and videos to model inputs, and token ids back to text; imports no torch."""

from ernie45.processor.processor import Processor

__all__ = ["Processor"]
