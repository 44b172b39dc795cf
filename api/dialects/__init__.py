"""How readers see the log: each wire format in a file of its own, a pure function of the log."""
