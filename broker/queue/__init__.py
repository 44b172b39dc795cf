"""Decides which generation runs next: tickets in arq's queue, the tenants' quotas, and the reaper, which requeues the
generations of a lost worker.

Imports `store` and the packages below it; everything here can be rebuilt from the logs' Redis. Start with `tickets.py`.
"""
