"""Conversion tracker: events in, one durable log, live marketing metrics out."""

__version__ = "0.1.0"
