"""Takes tickets from the queue, calls the upstream and appends the chunks that arrive to the generation's log.

Imports `broker`, never `api`. Start with `worker.py` (startup → serve → drain → hand over) and `generate.py` (one
generation); a token passes `upstream/stream.py` → `attempt.py` → `appender.py`.
"""
