"""ERNIE 4.5 in PyTorch: model, training, quantisation and serving.

Importing the package imports no torch; each sub-package imports what it needs.
"""

__version__ = "0.1.0"
