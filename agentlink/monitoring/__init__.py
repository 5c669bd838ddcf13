"""What is known of how everything goes: events as they happen, readings over the last month, health, logs.

Workers write events and readings (see `watching`); whoever shows them reads them by `events.read` and `history.read`.
"""
