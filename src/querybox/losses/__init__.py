"""Hungarian matching and training losses."""
