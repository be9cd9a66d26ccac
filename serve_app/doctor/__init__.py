"""Checks of the machine, the weights and the configuration before a start."""
