"""An OpenAI-compatible server: protocol, translation to engine requests, streaming, and a chat page.

Knows nothing about tensors; the engine is reached through typed messages only.
"""
