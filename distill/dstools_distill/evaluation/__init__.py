"""Evaluate students: pass rates, their statistics, and lm-eval."""
