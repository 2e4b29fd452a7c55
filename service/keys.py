"""Make an API key: ``python -m service.keys ID [--scopes infer ...] [--rows-per-second N]``."""

from __future__ import annotations

import hashlib
import json
import secrets
from dataclasses import dataclass

from pydantic import ValidationError

from common.cli import Parser, note, run_command, tell
from common.errors import UsageError, line_of
from service.access import SCOPES, KeyEntry


@dataclass(frozen=True)
class Outcome:
    """An entry of GLOW_API_KEYS_FILE and, which is stored nowhere, its key."""

    id: str
    sha256: str
    scopes: list[str]
    rows_per_second: float | None
    burst_rows: int | None
    key: str

    def __str__(self) -> str:
        entry = {name: value for name, value in vars(self).items() if name != "key" and value is not None}
        return "\n".join(["[[keys]]", *(f"{name} = {json.dumps(value)}" for name, value in entry.items())])


def parser() -> Parser:
    """The command's arguments."""
    parser = Parser(
        "python -m service.keys",
        "Make an API key. Its entry for GLOW_API_KEYS_FILE goes to standard output, the key itself, this once, to "
        "standard error.",
        examples=[
            "python -m service.keys pipeline >> keys.toml",
            "python -m service.keys pipeline --scopes infer metrics --rows-per-second 5000 >> keys.toml",
        ],
        outcome=Outcome,
    )
    parser.add_argument("id", metavar="ID", help="name of the key, for the log: up to 64 of A-Z a-z 0-9 . _ -")
    parser.add_argument("--scopes", nargs="+", choices=SCOPES, default=["infer"], help="what it may do")
    parser.add_argument("--rows-per-second", type=float, metavar="N", help="its quota, rows per second (default: none)")
    parser.add_argument(
        "--burst-rows", type=int, metavar="N", help="rows that it may have at once (default: four seconds of its quota)"
    )
    return parser


def main(argv: list[str]) -> None:
    """Print the entry of GLOW_API_KEYS_FILE to standard output, and the key itself, this once, beside it."""
    args = parser().parse_args(argv)
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
        raise UsageError(line_of(error.errors()[0])) from error
    tell(Outcome(**entry.model_dump(), key=key), args.json)
    if not args.json:
        note(f"the key of {entry.id}, which is stored nowhere: {key}")


if __name__ == "__main__":
    run_command(main)
