"""The parts that a detector is composed of, one idea a file."""
