"""Continuous batching: requests in, tokens out, over a paged KV cache.

Knows nothing about text; tokens and patches come from `processor`, text is made from tokens elsewhere.
"""
