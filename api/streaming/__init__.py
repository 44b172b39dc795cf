"""Event streams as HTTP responses, for every dialect: opening them, their cursors, the upkeep of open connections, the
`retry:` field.

Imports `server` and the rooms below it. Start with `follow.py`, which opens every stream; `connections.py` looks after
open ones.
"""
