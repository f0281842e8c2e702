"""What runs say: reading them, curves, statistics, figures and tables."""
