"""Concurrency helpers for asyncio: cancel tasks and wait for them, share one execution between identical calls, back
off after failures.

Imports nothing of the project. Start with `single_flight.py`.
"""
