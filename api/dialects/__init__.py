"""The protocols in which generations are read and created, each in a folder of its own. Dialects never import each
other.

Imports `streaming`, `server` and the modules of `api/`. Start with `native/routes.py`.
"""
