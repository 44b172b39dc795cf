"""The settings of all processes: read from the environment once, checked, and passed down.

Imports the vocabulary, `runtime` and `redis` (for its URLs). Start with `settings.py`.
"""
