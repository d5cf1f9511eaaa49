"""A trunk on its own worker thread, and the sessions on it."""
