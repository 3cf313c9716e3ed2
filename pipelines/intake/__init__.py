"""Raw files, from wherever they are, on their way to ingest."""
