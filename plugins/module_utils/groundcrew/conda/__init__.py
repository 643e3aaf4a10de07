"""Conda environments from a lock: solved on the controller, built and watched on hosts."""
