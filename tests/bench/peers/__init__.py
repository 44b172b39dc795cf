"""What others serve the same subscribers with, to be measured beside the gateway."""
