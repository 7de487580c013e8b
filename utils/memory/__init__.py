"""Plans of memory, without a model loaded. What counts bytes may enter."""
