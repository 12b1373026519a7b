"""One file per carrier protocol, without I/O: bytes and the time in, events out."""
