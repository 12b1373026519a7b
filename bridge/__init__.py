"""callscribe: phone calls in, words out to call control."""

__version__ = "0.1.0"
