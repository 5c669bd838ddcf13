"""What is seen of AgentLink from outside. Nothing that runs tasks needs it."""
