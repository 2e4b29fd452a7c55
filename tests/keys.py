"""Keys of callers in tests: entries of a keys file, and the headers that name them."""

import hashlib


def secret_of(name: str) -> str:
    return f"secret-of-{name}"


def entry(name: str, scopes: list[str], **further: object) -> str:
    digest = hashlib.sha256(secret_of(name).encode()).hexdigest()
    lines = [f'id = "{name}"', f'sha256 = "{digest}"', f"scopes = {scopes}".replace("'", '"')]
    return "\n".join(["[[keys]]", *lines, *(f"{key} = {value}" for key, value in further.items()), ""])


def key(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret_of(name)}"}
