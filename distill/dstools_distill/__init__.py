"""From reasoning traces to a student."""
