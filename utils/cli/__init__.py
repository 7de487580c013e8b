"""The command line: flags, types, names on the hub. What serves every script may enter, no stage's own flags."""
