"""Bytes in and out. Knows sockets, knows no carrier."""
