"""The words of the product, as values. Pure: only the standard library, no clock, no I/O."""
