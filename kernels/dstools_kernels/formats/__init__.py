"""Block FP8 and its lattice, with numpy twins."""
