"""Tasks and scores of a model."""
