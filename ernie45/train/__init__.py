"""Training: one loop, an optimiser, router upkeep, and objectives as pure functions."""
