"""The write side: from a request to durable records. Knows no web framework and no back end."""
