"""Rewards: judges of answers, their composition, and what becomes of answers that no judge could score."""
