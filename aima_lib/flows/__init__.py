"""Pipelines: units joined into larger ones. The language is pure; what runs it stands beside it."""
