"""Run a model layer by layer, to calibrate and to evaluate it."""
