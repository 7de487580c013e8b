"""How m objectives make one update: the seam and its methods. What knows engines, data or models may not enter."""
