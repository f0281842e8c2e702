"""A page for sweeps and runs: what it says, its figures, its one file, and the server that follows a sweep."""
