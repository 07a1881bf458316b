"""featurespeed: send your architecture, get back the initialization scale and learning rate of every block."""

from featurespeed.version import __version__

__all__ = ["__version__"]
