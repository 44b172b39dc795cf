"""Process infrastructure: environment variables, logging, counters and their Prometheus format, traces, listening
sockets, child processes, TLS for HTTP clients.

Imports only the vocabulary. Start with `process.py` and `environment.py`.
"""
