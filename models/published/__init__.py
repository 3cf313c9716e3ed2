"""Checkpoints that others have published: one file per family, each a table of their names against ours."""
