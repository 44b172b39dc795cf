"""Calls an OpenAI-compatible upstream and turns its response into validated chunks, a usage and a result.

Imports `broker` up to `store`, and nothing else of the worker. Start with `stream.py` (I/O) and `reply.py` (the
interpretation of a response).
"""
