"""The middleware that every request passes before its route: the guard of an open gateway, CORS, the connection limit,
the handler of last resort.

Imports `server` and `streaming`. Start with the list of middleware in `api/app.py`.
"""
