"""The quality sheet of a quantized checkpoint, as one page and as Markdown for a model card."""
