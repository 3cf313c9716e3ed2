"""The parts of a verdict."""
