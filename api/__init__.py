"""HTTP: routes, server-sent events, dialects, access, the dashboard.

The only package that knows starlette and uvicorn.
"""
