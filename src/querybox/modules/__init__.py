"""The modules that detectors are composed of, one file per stage."""
