"""The database floor: where evworker's tables are, and how to reach and make them."""
