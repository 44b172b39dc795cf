"""The settings in force: their values and sources, without secrets, and what would keep a process from starting.

Imports the rest of `settings`. Start with `report.py`.
"""
