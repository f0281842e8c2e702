"""The agents: each file is one whole algorithm, run by `python agents/NAME.py` or `hesscale-rl train NAME`."""
