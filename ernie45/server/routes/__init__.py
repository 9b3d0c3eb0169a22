"""The HTTP routes, a module for each group; each adds its own to the application."""
