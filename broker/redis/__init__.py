"""The Redis client: URLs and TLS, a pool for short commands, raw connections for the two hot paths, Sentinel and
Cluster.

Imports the vocabulary, `concurrency` and `runtime`; knows nothing about generations. `errors.py` says what
an error means, for both kinds of connection. Start with `client.py`.
"""
