"""The command: ``python -m service.score``, installed as ``glow-score``."""

from common.extras import require


def run() -> None:
    """Run the command with the arguments of the process."""
    require("serve", "torch", "pyarrow", "pydantic_settings", "tqdm")
    from common.cli import run_command
    from service.score.command import main

    run_command(main)


if __name__ == "__main__":
    run()
