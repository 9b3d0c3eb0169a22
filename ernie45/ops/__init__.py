"""Numerical kernels: for each a plain reference and a fast twin with one signature."""
