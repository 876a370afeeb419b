"""The decoder in torch, its architecture and its tokenizer."""
