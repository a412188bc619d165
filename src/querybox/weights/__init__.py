"""Weights in files: querybox's own, one file a public checkpoint layout, and backbones'. No pickle is executed."""
