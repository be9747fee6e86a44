"""Typed functions that the command line turns into commands; each imports what it needs when it runs."""
