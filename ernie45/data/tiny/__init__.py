"""The tiny model's data: handwritten digits, scenes, charts and text, made on the fly from a seed."""
