"""Recognisers, and the slots and batches that several calls share one through."""
