"""Files that a run leaves: whole or not at all, metrics, progress. Nothing that knows what is in them may enter."""
