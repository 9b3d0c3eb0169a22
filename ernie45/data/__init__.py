"""Training data: sources, rendering, encoding and mixtures."""
