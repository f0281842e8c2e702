"""The papers' supervised tasks: networks and losses, and their data."""
