"""Webhooks: delivers the announcements that the scripts put into the outbox when a generation ends.

Imports `store`, `settings` and what is below; `addresses`, which the settings use too, stands below them. Start with
`delivery.py`, which every gateway and worker runs; `sender.py` makes one HTTP request, `outbox.py` reads and writes
Redis.
"""
