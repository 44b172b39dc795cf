"""Event streams as responses, whatever their dialect: cursors, the response itself, `retry:`.

Imports `server`. Start with `response.py`.
"""
