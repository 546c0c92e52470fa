"""Metrics, benchmarks and tables."""
