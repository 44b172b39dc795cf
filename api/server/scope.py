"""Names of the ASGI scope extensions by which the server tells the application about a connection."""

FULL = "tokencast.full"
"""Present on requests of connections beyond the connection limit."""
