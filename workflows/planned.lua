-- Note how many steps a run has, now that they are planned. Should it have ended badly meanwhile, none of them begins. Stands
-- after ending.lua.
--   KEYS[1]  the run     KEYS[2]  its steps    KEYS[3]  the tree it counts in    ARGV[1]  the facts
redis.call('HSET', KEYS[1], 'steps_total', redis.call('HLEN', KEYS[2]))
local state = redis.call('HGET', KEYS[1], 'state')
if state == 'FAILED' or state == 'CANCELLED' then
    end_open(KEYS[1], KEYS[3])
    withdraw_steps(cjson.decode(ARGV[1]), KEYS[1])
end
