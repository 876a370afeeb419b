"""Side files: those beside the shards, each written and read by one module."""
