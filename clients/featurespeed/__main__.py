"""``python -m featurespeed``: the command line."""

from featurespeed.cli import main

main()
