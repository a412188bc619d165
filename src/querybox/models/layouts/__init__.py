"""One file a public checkpoint layout: what its names are in ours."""
