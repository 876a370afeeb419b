"""Chat templates, rendering, and the invariant of what is trained on."""
