"""`python -m splitlearn`: the same as the `splitlearn` command."""

from splitlearn.cli import main

if __name__ == "__main__":
    main()
