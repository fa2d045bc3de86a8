"""The same numbers, faster or on many devices."""
