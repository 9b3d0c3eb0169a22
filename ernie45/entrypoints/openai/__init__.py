"""OpenAI-compatible servers under FastDeploy's module path.

Knows nothing itself: a few lines over the server.
"""
