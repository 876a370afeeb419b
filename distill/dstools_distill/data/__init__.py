"""Prompts and samples: sources, row formats, duplicates, contamination and selection."""
