-- A step that waited has ended: what it waited for is forgotten. Runs in the step that stores its result.
--   KEYS[1]  its run    KEYS[2]  the run's steps    KEYS[3]  what each waits for    KEYS[4]  where their messages are
--   KEYS[5]  the steps that wait, in order    KEYS[6]  runs in which something waits
--   ARGV[1]  the step's id     ARGV[2]  the run's id      ARGV[3]  '1' when it has succeeded
--   ARGV[4]  seconds a run that goes on is kept
local facts = redis.call('HGET', KEYS[3], ARGV[1])
facts = facts and cjson.decode(facts) or {}
redis.call('HDEL', KEYS[4], ARGV[1])
if facts.name then
    redis.call('ZREM', KEYS[5], facts.name .. '\0' .. facts.since .. '\0' .. ARGV[1])
end
-- Run again after a failure, it gets the same payload, or takes the same branch; one that timed out waits anew.
if ARGV[3] == '1' or not (facts.payload or facts.timed_out) then
    redis.call('HDEL', KEYS[3], ARGV[1])
end
if redis.call('HLEN', KEYS[4]) == 0 then
    redis.call('ZREM', KEYS[6], ARGV[2])
    -- Nothing waits any more: the run need not be kept for as long as that might have taken.
    for i = 1, 3 do
        if redis.call('TTL', KEYS[i]) > tonumber(ARGV[4]) then redis.call('EXPIRE', KEYS[i], ARGV[4]) end
    end
end
