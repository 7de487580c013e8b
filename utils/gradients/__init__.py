"""Gradients of objectives in an engine, and their mathematics. What knows rewards, critics or data may not enter."""
