-- Stands before the scripts that count steps. A tree is a hash: `steps`, all there ever were, and `planned`, those of runs'
-- canvases that have not ended; and beside it the set of the other tasks that have not, by their ids: what is sent twice,
-- or ends twice, counts once. `counting` is what `agentlink.broker.fanout` makes.
local function refusal(counting)
    if counting.wanted == 0 then return nil end
    local counts = redis.call('HMGET', counting.tree, 'steps', 'planned')
    local steps = tonumber(counts[1] or 0) + counting.wanted
    local live = tonumber(counts[2] or 0) + redis.call('SCARD', counting.tree .. ':live') + counting.wanted
    if steps > counting.max_steps then return {'steps', steps} end
    if live > counting.max_live then return {'live', live} end
    return nil
end

local function count_steps(counting, steps)
    redis.call('HINCRBY', counting.tree, 'steps', steps)
    redis.call('EXPIRE', counting.tree, counting.keep_s)
end

local function count_sent(counting)
    count_steps(counting, #counting.ids)
    redis.call('SADD', counting.tree .. ':live', unpack(counting.ids))
    redis.call('EXPIRE', counting.tree .. ':live', counting.keep_s)
end
