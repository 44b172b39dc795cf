"""The protocols in which generations are created and read, each in a folder of its own. Dialects never import each
other.

Imports `streaming`, `server` and the modules of `api/`. Start with `native/routes.py`.
"""
