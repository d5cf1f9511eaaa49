"""Bottom, Trunk, Top, and the client model."""
