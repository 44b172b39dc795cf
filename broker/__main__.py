"""`python -m broker` is `tokencast`."""

from broker.cli import main

if __name__ == "__main__":
    main()
