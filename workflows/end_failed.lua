-- End a run one of whose steps has failed, now that the others have ended; not one that was resumed since. Stands after
-- ending.lua.
--   KEYS[1]  the run    KEYS[2]  the errands    ARGV[1]  the facts    ARGV[2]  the errand
local state = redis.call('HGET', KEYS[1], 'state')
local goes_on = state == 'QUEUED' or state == 'RUNNING'
if goes_on and redis.call('HEXISTS', KEYS[1], 'failure') == 1 then end_run(cjson.decode(ARGV[1]), KEYS[1], 'FAILED') end
redis.call('ZREM', KEYS[2], ARGV[2])
