-- End a run one of whose steps has failed, now that the others have ended. Stands after ending.lua.
--   KEYS[1]  the run    KEYS[2]  the errands    ARGV[1]  the facts    ARGV[2]  the errand
local state = redis.call('HGET', KEYS[1], 'state')
if state == 'QUEUED' or state == 'RUNNING' then end_run(cjson.decode(ARGV[1]), KEYS[1], 'FAILED') end
redis.call('ZREM', KEYS[2], ARGV[2])
