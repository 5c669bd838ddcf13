-- Stands before the scripts that change what others want to hear of: `tell` adds an event to the log, in the same step.
-- EVENTS, RATE and HOW are keys, KINDS says of each kind from which level on it is told, and 10 more where always: of the
-- others, above the rate, one in SAMPLE is told, and how many were left out when the second is over. RATE is a hash:
-- how many there were in a second, by that second, and how many of a kind were left out of it.
local level, rate, kept

local function look_how()
    if level then return end
    local how = redis.call('HMGET', HOW, 'ordered', 'level', 'rate', 'kept')
    level, rate = tonumber(how[1] or how[2] or FULL), tonumber(how[3] or USUAL_RATE)
    kept = how[4] or KEPT
end

local function write(kind, facts)
    look_how()
    redis.call('XADD', EVENTS, 'MAXLEN', '~', kept, '*', 'kind', kind, 'facts', facts)
    redis.call('EXPIRE', EVENTS, KEEP_S)
end

-- Of seconds that are over: what was left out of them.
local function summarize(second)
    local counts, seconds, left_out = redis.call('HGETALL', RATE), {}, {}
    for i = 1, #counts, 2 do
        if not tonumber(counts[i]) then
            left_out[counts[i]] = tonumber(counts[i + 1])
        elseif counts[i] ~= second then
            seconds[#seconds + 1] = counts[i]
        end
    end
    if #seconds == 0 then return end
    redis.call('DEL', RATE)
    if next(left_out) then
        write('step-summary', cjson.encode({second = tonumber(seconds[1]), left_out = left_out, sample = SAMPLE}))
    end
end

local function is_one_too_many(kind)
    local second = redis.call('TIME')[1]
    local count = redis.call('HINCRBY', RATE, second, 1)
    if count == 1 then
        summarize(second)
        redis.call('HSET', RATE, second, 1)
        redis.call('EXPIRE', RATE, KEEP_S)
    end
    if count <= rate or count % SAMPLE == 0 then return false end
    redis.call('HINCRBY', RATE, kind, 1)
    return true
end

-- `facts` is a table, or JSON. That something is not told is no reason for it not to happen.
local function tell(kind, facts)
    pcall(function()
        look_how()
        local from = KINDS[kind]
        if from % 10 > level or (from < 10 and is_one_too_many(kind)) then return end
        write(kind, type(facts) == 'table' and cjson.encode(facts) or facts)
    end)
end
