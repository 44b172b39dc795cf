"""What a worker says of itself: its heartbeat in the queue's Redis, its metrics and probes over HTTP.

Imports the rest of the worker but its composition root, `worker/worker.py`. Start with `heartbeat.py`.
"""
