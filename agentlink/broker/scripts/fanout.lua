-- Stands before the scripts that count steps. A tree is a hash: `steps`, all there ever were, and `planned`, those of runs'
-- canvases that have not ended; and beside it the set of the other tasks that have not, by their ids: what is sent twice,
-- or ends twice, counts once. Where an agent has made the call, `agent` is the key of that agent's own hash: `steps` and
-- `live` of all its trees, and beside it the set of its trees. `counting` is what `agentlink.broker.fanout` makes; its
-- `sent` are ids by their trees, and `apart` tells that these are several.
local function live_in(tree)
    return tonumber(redis.call('HGET', tree, 'planned') or 0) + redis.call('SCARD', tree .. ':live')
end

-- The agent's live steps, counted anew: a tree that was forgotten before all of it had ended has left some behind.
local function recounted(agent)
    local live = 0
    for _, tree in ipairs(redis.call('SMEMBERS', agent .. ':trees')) do
        if redis.call('EXISTS', tree) == 1 then
            live = live + live_in(tree)
        else
            redis.call('SREM', agent .. ':trees', tree)
        end
    end
    redis.call('HSET', agent, 'live', live)
    return live
end

local function agent_of(counting)
    return counting.agent or redis.call('HGET', counting.tree, 'agent')
end

local function refusal(counting)
    if counting.wanted == 0 then return nil end
    local steps, live
    if not counting.apart then
        steps = tonumber(redis.call('HGET', counting.tree, 'steps') or 0) + counting.wanted
        live = live_in(counting.tree) + counting.wanted
        if steps > counting.max_steps then return {'steps', steps} end
        if live > counting.max_live then return {'live', live} end
    end
    local agent = agent_of(counting)
    if not agent then return nil end
    steps = tonumber(redis.call('HGET', agent, 'steps') or 0) + counting.wanted
    live = tonumber(redis.call('HGET', agent, 'live') or 0) + counting.wanted
    if steps > counting.max_agent_steps then return {'agent_steps', steps, agent} end
    if live > counting.max_agent_live then
        live = recounted(agent) + counting.wanted
        if live > counting.max_agent_live then return {'agent_live', live, agent} end
    end
    return nil
end

-- So many more of a tree's steps have not ended.
local function count_live(tree, number)
    local agent = number ~= 0 and redis.call('HGET', tree, 'agent')
    if not agent then return end
    redis.call('HINCRBY', agent, 'live', number)
    if number < 0 and live_in(tree) == 0 then
        redis.call('SREM', agent .. ':trees', tree)
    elseif number > 0 then
        redis.call('SADD', agent .. ':trees', tree)
    end
end

local function count_steps(counting, steps)
    redis.call('HINCRBY', counting.tree, 'steps', steps)
    redis.call('EXPIRE', counting.tree, counting.keep_s)
    local agent = agent_of(counting)
    if not agent then return end
    redis.call('HSET', counting.tree, 'agent', agent)
    redis.call('HINCRBY', agent, 'steps', steps)
    redis.call('SADD', agent .. ':trees', counting.tree)
    redis.call('EXPIRE', agent, counting.keep_s)
    redis.call('EXPIRE', agent .. ':trees', counting.keep_s)
end

local function count_sent(counting)
    for tree, ids in pairs(counting.sent) do
        counting.tree = tree
        count_steps(counting, #ids)
        count_live(tree, redis.call('SADD', tree .. ':live', unpack(ids)))
        redis.call('EXPIRE', tree .. ':live', counting.keep_s)
    end
end
