"""Teachers: local models, endpoints, batch files and replayed samples."""
