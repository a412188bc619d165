"""How fast detectors learn from few images, querybox's and transformers': ``python -m benchmarks.convergence``."""
