"""A monitor for running training: the present step is measured every so often, and told to whoever should know.

``monitor.py`` is for a plain loop, ``lightning.py`` and ``huggingface.py`` are callbacks that hand it their batches.
"""
