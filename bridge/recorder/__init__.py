"""Recording what came in: tapes of legs, a thread that writes, files that are found and deleted."""
