"""CGPO (arXiv 2409.20370): tasks whose responses have to pass judges. What is chosen of a rollout, and its losses."""
