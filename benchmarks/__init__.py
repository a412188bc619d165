"""Benchmarks of querybox and other implementations: ``python -m benchmarks --help``."""
