"""Patches, masks, positions and the transformer."""
