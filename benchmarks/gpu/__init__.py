"""Measures querybox beside transformers on a GPU."""
