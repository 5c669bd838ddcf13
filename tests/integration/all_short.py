"""What a test adds to a worker: tasks that are known count as short, however busy the machine that measured them."""

from __future__ import annotations

from resource_guard import followers

followers.SHORT_S = 60.0
