"""The HTTP server: uvicorn with ordered shutdown, limits on connections and on unread responses, and direct access to
the transport for event streams.

Imports `broker` and `api/errors.py`. Start with `server.py`, then `protocol.py`.
"""
