"""What is known of how everything goes: events as they happen, and readings over the last month.

Workers write both (see `recording`); whoever shows them reads them by `events.read` and `history.read`.
"""
