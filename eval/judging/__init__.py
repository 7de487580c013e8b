"""A language model as judge: its client, its criteria, whose answers it compares. Nothing about reports may enter."""
