"""Model families: the names and shapes of their tensors."""
