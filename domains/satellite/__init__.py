"""Multispectral satellite imagery."""
