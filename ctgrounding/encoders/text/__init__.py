"""Text encoders: unique token rows in, one vector each out."""
