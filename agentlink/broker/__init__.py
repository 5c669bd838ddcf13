"""The embedded broker, how Celery talks to it, and where results are kept."""
