"""Routes for operators: probes, metrics, the caller, overview, history, queue, workers, keys, subscribers, models.

Imports no dialect. Start with `health.py`.
"""
