"""The protocols in which generations are created and read, each in a folder of its own: frames, routes, its part of
/openapi.json, and `dialect.py`, which `api/app.py` mounts with one line. Dialects never import each other.

Imports `streaming`, `server` and the modules of `api/`. Start with `base.py`, then `native/dialect.py`.
"""
