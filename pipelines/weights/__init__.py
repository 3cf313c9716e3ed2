"""Checkpoints: our own, tuned ones, published ones."""
