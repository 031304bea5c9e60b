"""`python -m semalign_jax.cli`."""

from . import main

if __name__ == "__main__":  # processes that decode images import this file as well
    main()
