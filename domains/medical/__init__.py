"""X-ray and CT."""
