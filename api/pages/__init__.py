"""What people and tools open in a browser: the dashboard, `/docs`, `/openapi.json`, and the libraries that they load.

Imports the other routes, whose parts of the OpenAPI document it collects. Start with `openapi.py`.
"""
