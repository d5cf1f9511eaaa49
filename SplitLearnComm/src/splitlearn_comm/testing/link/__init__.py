"""A network link in user space: latency, bandwidth and loss of connection, for anything that speaks TCP."""
