"""`python -m agentlink` is the `agentlink` command."""

from agentlink.cli import main

main()
