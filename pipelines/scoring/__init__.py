"""Predictions to scores, intervals, floors and sentences."""
