"""Where data comes from: readers, prepared shards, splits, contracts. Imports itself, torch and numpy alone."""
