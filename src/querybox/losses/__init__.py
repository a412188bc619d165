"""Matching and losses: how predictions are compared with objects."""
