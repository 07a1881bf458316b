"""Long proofs of what the service promises: short by default, in full with ``--full`` (``make chaos``)."""
