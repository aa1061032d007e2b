"""Promises between the parts: Protocols and the values that cross them. No technology."""
