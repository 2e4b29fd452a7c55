"""The command: ``python -m service.score``, installed as ``glow-score``."""

from service.cli import run_command
from service.score.command import main


def run() -> None:
    """Run the command with the arguments of the process."""
    run_command(main)


if __name__ == "__main__":
    run()
