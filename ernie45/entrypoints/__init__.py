"""Entry points under other programs' names, so that their commands work here.

Know nothing themselves: a few lines over the server.
"""
