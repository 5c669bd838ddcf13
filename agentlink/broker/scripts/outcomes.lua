-- Stands before the scripts that count how tasks and runs end: see `agentlink.broker.outcomes`, which says what OUTCOMES,
-- BOUNDS_S, NAMES_MAX and KEPT_S are.
-- The hash of a name. Of names there may be any number: beyond so many in the time they are kept, they are one, "other".
local function outcomes_of(kind, name, now)
    local names = OUTCOMES .. kind
    if not redis.call('ZSCORE', names, name) then
        redis.call('ZREMRANGEBYSCORE', names, '-inf', now - KEPT_S)
        if redis.call('ZCARD', names) >= NAMES_MAX then name = 'other' end
    end
    redis.call('ZADD', names, now, name)
    redis.call('EXPIRE', names, KEPT_S)
    return names .. ':' .. name
end

local function bucket_of(seconds)
    for i, bound in ipairs(BOUNDS_S) do
        if seconds <= bound then return i end
    end
    return #BOUNDS_S + 1
end

local function note_seconds(hash, what, seconds)
    if seconds < 0 then seconds = 0 end -- by the clocks of two machines
    redis.call('HINCRBY', hash, what .. ':' .. bucket_of(seconds), 1)
    redis.call('HINCRBY', hash, what .. ':us', string.format('%.0f', seconds * 1e6))
end

-- How long a run has waited is told of its first start alone: started anew, it had not waited since it was called.
local function note_run_ended(run, state, now)
    local facts = redis.call('HMGET', run, 'workflow', 'called_at', 'started_at', 'replay')
    local hash = outcomes_of('run', facts[1] or 'other', now)
    redis.call('HINCRBY', hash, 'ended:' .. string.lower(state), 1)
    if facts[3] then
        note_seconds(hash, 'ran', now - facts[3])
        if not facts[4] then note_seconds(hash, 'waited', facts[3] - facts[2]) end
    end
    redis.call('EXPIRE', hash, KEPT_S)
end
