-- Note that runs have ended, after what has ended them, once each time: those who read their streams are woken, and how
-- long a run has taken is kept for the next of its kind.
--   ARGV[1]  the prefix of runs' keys       ARGV[2], ARGV[3]  ids of runs that may have ended now; those they are steps of
--   ARGV[4]  the prefix of durations' keys  ARGV[5]  how many of them are kept     ARGV[6]  for how many seconds
local function note(id)
    local run = ARGV[1] .. id
    local facts = redis.call('HMGET', run, 'ended_at', 'ended_noted', 'started_at', 'state', 'workflow', 'parent_id')
    local ended_at = facts[1]
    if ended_at and ended_at ~= facts[2] then -- a run that goes on, and ends again, ends at another time
        redis.call('HSET', run, 'ended_noted', ended_at)
        local ttl_s = redis.call('TTL', run)
        if redis.call('EXISTS', run .. ':stream') == 1 then
            redis.call('XADD', run .. ':stream', '*', 'end', facts[4])
        end
        for _, key in ipairs({run .. ':stream', run .. ':told'}) do
            if ttl_s > 0 then redis.call('EXPIRE', key, ttl_s) end
        end
        if facts[4] == 'SUCCEEDED' and facts[3] then
            local durations = ARGV[4] .. facts[5]
            redis.call('RPUSH', durations, string.format('%.3f', ended_at - facts[3]))
            redis.call('LTRIM', durations, -ARGV[5], -1)
            redis.call('EXPIRE', durations, ARGV[6])
        end
    end
    return facts[6]
end

for _, first in ipairs({ARGV[2], ARGV[3]}) do
    local id = first
    while id and id ~= '' do id = note(id) end
end
