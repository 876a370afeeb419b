"""The store of finished stages: identity, resuming, and row-by-row work."""
