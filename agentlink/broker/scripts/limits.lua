-- Stands before the scripts that take messages and those that end with one: limits by key.
-- A message of a limited task begins with a mark (see `agentlink.broker.limits`). Who takes it takes a place of its key
-- with it, and time where there is a rate; where that is not to be had the message waits apart from its queue: in a sorted
-- set for its queue and key, by priority and age. A sorted set for the queue holds the keys, by when the next of theirs
-- may be taken (ms): 'inf' when another has to end first.
-- A place is held by the tag of the message, worker and number, for as long as that is in flight.
local BAND, MIDDLE = 1e12, 5e11

local function limits_of(message)
    if string.sub(message, 1, 12) ~= '{"agentlink_' then return nil end
    local most, interval_us, ahead_us, priority, name, id = string.match(
        string.sub(message, 1, MARK_MAX),
        '"agentlink_limits": "(%d+) (%d+) (%d+) (%d) (.-)", "agentlink_id": "(.-)", "'
    )
    return name and {
        name = name,
        id = id,
        most = tonumber(most),
        interval_us = tonumber(interval_us),
        ahead_us = tonumber(ahead_us),
        priority = tonumber(priority),
    }
end

local function queue_of(list)
    local parted = string.find(list, SEPARATOR, 1, true)
    return parted and string.sub(list, 1, parted - 1) or list
end

-- The rate's clock is when the next would be due if all came as seldom as they should; one may come early by `ahead_us`.
local function put_clock(name, due_us, now_us)
    local left_ms = math.ceil((due_us - now_us) / 1000)
    if left_ms > 0 then
        redis.call('SET', LIMIT .. name .. ':clock', string.format('%.0f', due_us), 'PX', left_ms)
    else
        redis.call('DEL', LIMIT .. name .. ':clock')
    end
end

-- Take a place for a message. Where there is none: from when on it is worth asking again. One that was revoked needs none:
-- who takes it is told.
local function refused_until(limits, worker, number, now_us)
    if redis.call('ZSCORE', REVOKED, limits.id) then
        limits.revoked = true
        return nil
    end
    local held = LIMIT .. limits.name .. ':held'
    if limits.most > 0 and redis.call('SCARD', held) >= limits.most then return 'inf' end
    if limits.interval_us > 0 then
        local due_us = math.max(now_us, tonumber(redis.call('GET', LIMIT .. limits.name .. ':clock') or 0))
        if due_us - limits.ahead_us > now_us then return math.ceil((due_us - limits.ahead_us) / 1000) end
        put_clock(limits.name, due_us + limits.interval_us, now_us)
    end
    redis.call('SADD', held, worker .. '/' .. number)
    redis.call('HSET', PLACES .. worker, number, limits.interval_us .. ' ' .. limits.name)
    return nil
end

-- Put a message (`flight` is its list, NUL, message) to those that wait: as the first of them if it has had a place.
local function set_apart(flight, limits, ready_ms, as_first)
    local queue = queue_of(string.match(flight, '^%Z*'))
    local apart, least = LIMITED .. queue .. '\1' .. limits.name, (9 - limits.priority) * BAND
    local most, at = least + BAND - 1, least + MIDDLE
    if as_first then
        local first = redis.call('ZRANGEBYSCORE', apart, least, most, 'WITHSCORES', 'LIMIT', 0, 1)
        if first[2] then at = tonumber(first[2]) - 1 end
        redis.call('ZADD', LIMITED .. queue, ready_ms, limits.name)
    else
        local last = redis.call('ZREVRANGEBYSCORE', apart, most, least, 'WITHSCORES', 'LIMIT', 0, 1)
        if last[2] then at = tonumber(last[2]) + 1 end
        redis.call('ZADD', LIMITED .. queue, 'NX', ready_ms, limits.name)
    end
    redis.call('ZADD', apart, at, flight)
    redis.call('SADD', LIMIT .. limits.name .. ':queues', queue)
    redis.call('SADD', QUEUES, queue)
end

-- No message of a key waits in a queue any more.
local function forget_waiting(queue, name)
    redis.call('ZREM', LIMITED .. queue, name)
    redis.call('SREM', LIMIT .. name .. ':queues', queue)
    if redis.call('EXISTS', LIMITED .. queue) == 0 then redis.call('SREM', QUEUES, queue) end
end

-- The first that waits in a queue for a place of a key (its list, NUL, message), and its priority.
local function first_apart(queue, name)
    local first = redis.call('ZRANGE', LIMITED .. queue .. '\1' .. name, 0, 0, 'WITHSCORES')
    if first[1] then return first[1], 9 - math.floor(tonumber(first[2]) / BAND) end
    forget_waiting(queue, name)
    return nil
end

-- As `refused_until`, for a message that comes from its queue: those that wait already come first.
local function place_for(list, limits, worker, number, now_us)
    if redis.call('EXISTS', LIMITED .. queue_of(list) .. '\1' .. limits.name) == 1 then return 0 end
    return refused_until(limits, worker, number, now_us)
end

-- The place of a message that is in flight no more is free: the next of its key may come, in these queues.
local function leave_place(worker, number, now_ms, freed)
    local place = redis.call('HGET', PLACES .. worker, number)
    if not place then return nil end
    local interval_us, name = string.match(place, '^(%d+) (.*)$')
    redis.call('HDEL', PLACES .. worker, number)
    redis.call('SREM', LIMIT .. name .. ':held', worker .. '/' .. number)
    for _, queue in ipairs(redis.call('SMEMBERS', LIMIT .. name .. ':queues')) do
        if redis.call('ZSCORE', LIMITED .. queue, name) == 'inf' then
            redis.call('ZADD', LIMITED .. queue, now_ms, name)
            freed[queue] = true
        end
    end
    return name, tonumber(interval_us)
end

-- A message in flight goes back: to the head of its list, or of those that wait for a place. The rate's time is given
-- back too, unless its task was started.
local function return_message(worker, number, list, message, started, now_us, freed)
    local now_ms = math.floor(now_us / 1000)
    local name, interval_us = leave_place(worker, number, now_ms, freed)
    if not name then
        redis.call('RPUSH', list, message)
        return
    end
    local due_us = interval_us > 0 and not started and redis.call('GET', LIMIT .. name .. ':clock')
    if due_us then put_clock(name, tonumber(due_us) - interval_us, now_us) end
    set_apart(list .. '\0' .. message, limits_of(message), now_ms, true)
    freed[queue_of(list)] = true
end

-- Tell the workers of queues in which one that waited may be taken by now.
local function tell_of(freed, now_ms)
    for queue in pairs(freed) do
        if redis.call('ZCOUNT', LIMITED .. queue, '-inf', now_ms) > 0 then redis.call('PUBLISH', WAKE .. queue, '') end
    end
end
