"""Recipes: the settings of every stage, read from TOML."""
