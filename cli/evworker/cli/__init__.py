"""evworker's top floor: the `evworker` command. Nothing here is meant to be imported."""
