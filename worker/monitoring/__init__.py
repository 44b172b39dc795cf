"""Publishes a worker's state: its heartbeat in the queue's Redis, its metrics and probes over HTTP.

Imports the rest of the worker except its composition root, `worker/worker.py`. Start with `heartbeat.py`.
"""
