"""The ground: files, stage folders, passes over shards, and the machine."""
