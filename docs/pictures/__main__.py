"""Draw the pictures of the documentation: ``python -m docs.pictures [NAME ...] [--data DIR]``."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from typing import Protocol, cast

import docs.pictures
from common.cli import Parser, run_command
from common.errors import UsageError

IMAGES = Path(__file__).parents[1] / "images"


class Picture(Protocol):
    """What a module of a picture has."""

    IMAGE: str
    DATA: tuple[str, ...]

    def draw(self, path: Path, data_dir: Path) -> None: ...


def pictures() -> dict[str, Picture]:
    """Every picture by the name of its module."""
    names = [module.name for module in pkgutil.iter_modules(docs.pictures.__path__) if module.name != "__main__"]
    modules = {name: importlib.import_module(f"docs.pictures.{name}") for name in names}
    return {name: cast(Picture, module) for name, module in modules.items() if hasattr(module, "IMAGE")}


def main(argv: list[str]) -> None:
    known = pictures()
    parser = Parser("python -m docs.pictures", "Draw the pictures of the documentation.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"by default all: {', '.join(known)}")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder that holds fashion-mnist/")
    args = parser.parse_args(argv)
    for name in args.names:
        if name not in known:
            raise UsageError(f"{name}: must be one of {', '.join(known)}")
    for name in args.names or known:
        picture = known[name]
        if absent := [folder for folder in picture.DATA if not (args.data / folder).is_dir()]:
            print(f"{picture.IMAGE}: kept as it is, for {args.data / absent[0]} is not there")
            continue
        picture.draw(IMAGES / picture.IMAGE, args.data)
        print(f"{picture.IMAGE}: {(IMAGES / picture.IMAGE).stat().st_size / 1e3:.0f} kB", flush=True)


if __name__ == "__main__":
    run_command(main)
