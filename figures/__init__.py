"""The figures of docs/anatomy, made from the shipped model: ``python -m figures``."""
