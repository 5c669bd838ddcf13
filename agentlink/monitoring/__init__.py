"""What people and machines see of AgentLink: health, logs. Nothing that runs tasks needs it."""
