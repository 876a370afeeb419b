"""Read checkpoints: headers, folders, schemes, the inventory of their tensors, and their rows."""
