"""Policies that are steered by a direction in their system turn. Only what needs no model may enter."""
