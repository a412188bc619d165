"""Reading and writing of checkpoints: native ones, public layouts, backbone weights. No pickled code is executed."""
