"""`python -m alexnet_jax` and `alexnet-jax`: see `alexnet_jax.cli.main`."""

import sys

from alexnet_jax.cli import process


def main(typed: list[str] | None = None) -> int:
    """Runs the verb that was typed, as the whole of this process."""
    if typed is None:  # Not where a program calls this function: it would start anew.
        process.use_huge_pages()
    process.prepare()
    from alexnet_jax.cli import main as command  # takes time to import

    return command.main(typed)


if __name__ == "__main__":
    sys.exit(main())
