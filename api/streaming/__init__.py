"""Event streams as HTTP responses, for every dialect: cursors, the response itself, the `retry:` field.

Imports `server` and the rooms below it. Start with `response.py`.
"""
