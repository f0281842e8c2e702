"""The commands behind `hesscale-rl`."""
