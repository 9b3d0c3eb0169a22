"""Whole runs: data, model, stages, scores and plots put together."""
