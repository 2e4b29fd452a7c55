"""What one writes with each peer to serve the same file; each runs in an environment of its own.

All take ``{"inputs": [[...], ...]}`` at ``POST /predict``. ``PEER_MODEL`` names the file, ``PORT`` the port.
"""
