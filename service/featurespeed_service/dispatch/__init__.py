"""The dispatcher: a process that takes jobs from the store and has them computed on Ray."""
