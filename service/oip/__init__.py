"""The Open Inference Protocol, version 2, over REST, with binary tensors: what clients of Triton and KServe speak.

``codec`` is bytes and named arrays, ``models`` what an artifact is in terms of the protocol, ``statistics`` what has
been asked of it, ``routes`` the endpoints.
"""
