"""Side files: the JSON beside the shards, each written and read by one module, and what is copied along."""
