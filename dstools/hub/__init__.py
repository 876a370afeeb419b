"""Publishing on the Hub: what goes there, the model card, and the way it gets there whole."""
