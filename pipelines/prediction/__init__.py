"""Native files through a checkpoint."""
