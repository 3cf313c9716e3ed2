"""What happens, in order: one module per stage, and the command line."""
