"""Make an API key: ``python -m service.keys ID [--scopes infer ...] [--rows-per-second N]``."""

from __future__ import annotations

import hashlib
import secrets
import sys

from pydantic import ValidationError

from service.access import SCOPES, KeyEntry
from service.cli import Parser, UsageError, run_command


def main(argv: list[str]) -> None:
    """Print the entry of GLOW_API_KEYS_FILE to the standard output, and the key itself, this once, beside it."""
    parser = Parser(
        "python -m service.keys",
        "Make an API key. Its entry for GLOW_API_KEYS_FILE goes to the standard output, the key to the terminal.",
        "python -m service.keys pipeline --scopes infer metrics --rows-per-second 5000 >> keys.toml",
    )
    parser.add_argument("id", help="name of the key, for the log")
    parser.add_argument("--scopes", nargs="+", choices=SCOPES, default=["infer"], help="what it may do (infer)")
    parser.add_argument("--rows-per-second", type=float, help="its quota; without one, it has none")
    parser.add_argument("--burst-rows", type=int, help="rows that it may have at once (four seconds of its quota)")
    args = parser.parse_args(argv)
    key = secrets.token_urlsafe(32)
    try:
        entry = KeyEntry(
            id=args.id,
            sha256=hashlib.sha256(key.encode()).hexdigest(),
            scopes=args.scopes,
            rows_per_second=args.rows_per_second,
            burst_rows=args.burst_rows,
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(f"{'.'.join(map(str, first['loc']))}: {first['msg'].removeprefix('Value error, ')}") from error
    print("[[keys]]")
    for name, value in entry.model_dump(exclude_none=True).items():
        shown = f'"{value}"' if isinstance(value, str) else str(value).replace("'", '"')
        print(f"{name} = {shown}")
    print(f"the key of {entry.id}, which is stored nowhere: {key}", file=sys.stderr)


if __name__ == "__main__":
    run_command(main)
