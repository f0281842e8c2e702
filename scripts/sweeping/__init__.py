"""Sweeps: what a specification asks for, how its runs are launched, and how they are packed to be published."""
