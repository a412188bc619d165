"""What querybox survives, each fault really made: `make torture`."""
