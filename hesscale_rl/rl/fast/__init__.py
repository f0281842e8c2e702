"""The compiled twins of rl/: the same results, in loops that need no interpreter."""
