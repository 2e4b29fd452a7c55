"""The service: artifact -> engine -> HTTP."""
