"""The service under load, beside the servers one would otherwise put around the same artifact."""
