"""Scaling rules: from measurements, or from a table, to the initialization scale and learning rate of every block."""
