"""What runs a model over windows: torch, OpenVINO, or several models at once."""
