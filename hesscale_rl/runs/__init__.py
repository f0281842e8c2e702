"""Runs: their directory, checkpoints, arguments and progress, and what every agent does with them."""
