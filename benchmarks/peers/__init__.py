"""The peers of our reader, each in its own environment and process, and the protocol they all speak."""
