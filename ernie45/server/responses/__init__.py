"""OpenAI's responses: items in and out, typed events, and what is kept of them.

Knows nothing about HTTP or the engine; a response is answered as a chat.
"""
