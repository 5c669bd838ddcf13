-- A step that was a dead letter is sent again: it waits, and its run goes on.
--   KEYS[1]  the run    KEYS[2]  its steps    KEYS[3]  the step's result    KEYS[4]  the run's result
--   ARGV[1]  the step's id     ARGV[2]  seconds a run that goes on is kept
local old = redis.call('HGET', KEYS[2], ARGV[1])
redis.call('DEL', KEYS[3])
if not old or string.sub(old, 1, 7) ~= 'FAILED ' then return end
local facts = cjson.decode(string.sub(old, 8))
redis.call('HSET', KEYS[2], ARGV[1], 'WAITING ' .. cjson.encode({name = facts.name, place = facts.place}))
redis.call('HINCRBY', KEYS[1], 'steps_done', -1)
if redis.call('HGET', KEYS[1], 'state') == 'FAILED' then
    redis.call('HSET', KEYS[1], 'state', 'RUNNING')
    redis.call('HDEL', KEYS[1], 'failure', 'ended_at')
    redis.call('EXPIRE', KEYS[1], ARGV[2])
    redis.call('EXPIRE', KEYS[2], ARGV[2])
    redis.call('DEL', KEYS[4])
end
