"""Which generation runs next: tickets in arq's queue, the tenants' quotas, and the reaper, which puts back what a lost
worker ran.

Imports `store` and what is below it; everything here can be rebuilt from the logs' Redis. Start with `tickets.py`.
"""
