"""The protocols in which generations are created and read, each in a folder of its own: frames, routes, its part of
/openapi.json, and `dialect.py`, whose constant `api/app.py` lists in `DIALECTS`. Dialects never import each other.
docs/architecture.md has the steps to add one.

Imports `streaming`, `server` and the modules of `api/`. Start with `base.py`, then `native/dialect.py`.
"""
