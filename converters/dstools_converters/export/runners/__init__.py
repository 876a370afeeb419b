"""Exported folders as the runtime's loop runs them."""
