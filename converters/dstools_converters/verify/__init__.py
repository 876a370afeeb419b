"""Check a checkpoint: by itself, against its source, and against the rules of engines."""
