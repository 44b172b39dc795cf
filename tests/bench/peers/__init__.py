"""Other servers for the same subscribers, measured next to the gateway."""
