"""Judge answers: extraction, parsing, comparison, and running code in a sandbox."""
