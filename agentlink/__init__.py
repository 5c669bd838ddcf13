"""AgentLink: a Celery task queue and workflow runtime for AI agents on one machine."""
