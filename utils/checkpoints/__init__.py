"""State of a run on disk and back. What saves, seals, compares or restores it may enter; nothing about losses."""
