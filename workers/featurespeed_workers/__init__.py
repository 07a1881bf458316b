"""The science: build a network from a specification, measure it, recommend its scales and rates; and its Ray tasks."""
