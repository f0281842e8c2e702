"""Studies: each answers one question about the methods, with a figure from one command."""
