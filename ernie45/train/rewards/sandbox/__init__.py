"""Runs programs that nobody has read, in a process that can do next to nothing. The threat model is in `run`."""
