"""The gateway: HTTP routes, server-sent events, dialects, access control, the dashboard.

The only package that imports starlette and uvicorn. Start with `app.py`.
"""
