"""`python -m evworker` is the command as well."""

from evworker.cli.main import main

main()
