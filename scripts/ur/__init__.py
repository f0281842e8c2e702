"""A policy on a UR arm: deployment, the simulated controller, the operator's view."""
