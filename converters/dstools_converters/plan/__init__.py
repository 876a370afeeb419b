"""Plan every output tensor: recipe, decisions, and the layout of the shards."""
