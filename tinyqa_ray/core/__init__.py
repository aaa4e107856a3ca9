"""What all other packages build on: files, stage folders, passes over shards, and the machine."""
