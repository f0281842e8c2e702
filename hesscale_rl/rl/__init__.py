"""Reinforcement learning's own parts, as plain definitions; fast/ has their compiled twins."""
