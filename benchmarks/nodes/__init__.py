"""What dispatcher and store cost: a cell on a real Ray, and a cluster of 64 nodes whose cells only wait."""

import featurespeed_service.dispatch  # noqa: F401  (sets Ray's environment, before anybody imports ray)
