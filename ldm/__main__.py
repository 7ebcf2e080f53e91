"""`python -m ldm` is the command line; torchrun and accelerate start it this way."""

from ldm.cli.main import main

if __name__ == "__main__":
    main()
