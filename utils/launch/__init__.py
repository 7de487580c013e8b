"""What run_all.sh and the launchers are made of. Bash may enter, and small commands that it calls."""
