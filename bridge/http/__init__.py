"""What people and tools ask us over HTTP."""
