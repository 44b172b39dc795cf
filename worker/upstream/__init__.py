"""Calls an OpenAI-compatible upstream and turns whatever it sends into checked chunks, a usage and an ending.

Imports `broker` up to `store`, and nothing else of the worker. Start with `stream.py` (I/O) and `reply.py` (what a
reply means).
"""
