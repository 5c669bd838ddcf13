-- End a run on request, and the runs below it. Stands after ending.lua.
--   KEYS[1]  the run    ARGV[1]  the facts
-- Returns the state it was in, or nothing when it is not known.
local state = redis.call('HGET', KEYS[1], 'state')
if state == 'QUEUED' or state == 'RUNNING' then end_run(cjson.decode(ARGV[1]), KEYS[1], 'CANCELLED') end
return state
