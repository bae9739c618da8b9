"""`python -m evworker.cli` is the command as well."""

from evworker.cli.main import main

main()
