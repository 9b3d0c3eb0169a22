"""Objectives: pure functions (outputs, batch, config) -> loss and metrics."""
