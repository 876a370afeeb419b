"""Cards: what a run made of what, for the dataset and for the model."""
