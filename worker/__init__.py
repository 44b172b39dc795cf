"""Takes tickets, calls the upstream, appends what arrives. Imports broker, never api."""
