"""Maths without state: contrast, localization, prompts, pooling, ranks, bootstrap."""
