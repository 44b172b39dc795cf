"""Routes for operators and documentation: probes, metrics, overview, dashboard, models, `/openapi.json`, `/docs`.

Imports the dialects, whose part of the OpenAPI document it collects. Start with `health.py`.
"""
