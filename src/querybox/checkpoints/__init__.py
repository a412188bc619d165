"""Detectors in files: querybox's own, public checkpoints, and backbones' weights. No pickle is executed."""
