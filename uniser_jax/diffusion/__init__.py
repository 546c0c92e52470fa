"""Rectified flow between a photograph and noise: path, prediction types, loss, sampler."""
