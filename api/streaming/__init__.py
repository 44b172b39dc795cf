"""Event streams as HTTP responses, for every dialect: opening, cursors, heartbeats and limits of open connections, and
the `retry:` field.

Imports `server` and the packages below it. Start with `follow.py`, which opens every stream; `connections.py` manages
open ones.
"""
