"""Models on disk and in memory: loading, checking, adapters, export. Losses and training may not enter."""
