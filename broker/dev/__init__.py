"""`tokencast dev`: Redis, a simulated upstream, a worker and a gateway on this machine, as child processes.

Imports any package but `cli`. Start with `launcher.py`.
"""
