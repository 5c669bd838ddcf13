-- Count the steps that a run's canvas has, once, unless there are too many. Stands after fanout.lua.
--   KEYS[1]  the run
--   ARGV[1]  the field of the run that tells that this canvas is counted     ARGV[2]  see fanout.lua
--   ARGV[3]  the run's id    ARGV[4]  the field of the run that holds the canvas's graph    ARGV[5]  its graph
-- Returns nothing; {'changed'} when another graph is known; or what `refusal` says. The run's `open` is what it has in its
-- tree's `planned`.
local counting = cjson.decode(ARGV[2])
if (redis.call('HGET', KEYS[1], ARGV[4]) or ARGV[5]) ~= ARGV[5] then return {'changed'} end
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 1 then return false end
-- A run that a step has started is counted: it turns into its last step.
local started = redis.call('SISMEMBER', counting.tree .. ':live', ARGV[3])
local steps = counting.wanted
counting.wanted = steps - started
local refused = refusal(counting)
if refused then return refused end
redis.call('SREM', counting.tree .. ':live', ARGV[3])
redis.call('HSET', KEYS[1], ARGV[1], steps, ARGV[4], ARGV[5])
redis.call('HINCRBY', KEYS[1], 'open', steps)
redis.call('HINCRBY', counting.tree, 'planned', steps)
count_steps(counting, steps - started)
count_live(counting.tree, steps - started)
return false
