-- A worker's whole business with the broker, in one step: acknowledge, give back, take.
--   KEYS[1]  all leases: worker → the server's time, in ms, at which its lease ends
--   KEYS[2]  this worker's messages in flight: number → queue key, NUL, message
--   KEYS[3]  numbers of those whose task has been started
--   KEYS[4…3+n]      the delayed messages of n queues, named after these
--   KEYS[4+n…]       the lists to take from, most urgent first
--   ARGV[1]  the worker        ARGV[2]  n       ARGV[3]  how many messages it wants
--   ARGV[4]  the number of the first one it gets
--   ARGV[5], ARGV[6], ARGV[7], ARGV[8]  how many of the numbers in ARGV[11…] are: acknowledged; given back (the youngest
--            first); given back after their task was started and died; started
--   ARGV[9]  how many messages, after those, are acknowledged with a result: number, the result's key, result, seconds it
--            is kept or '0'
--   ARGV[10] how many, after those, are given back since their task was evicted: number, how often, bytes to be reserved
-- Returns {0} when the worker has no lease (any more): nothing has been done. Else {1, ms until the next delayed message,
-- or one that waits at a rate, is due or -1, key, message, key, message …}.
if not redis.call('ZSCORE', KEYS[1], ARGV[1]) then
    return {0}
end

local worker, freed = ARGV[1], {}
local clock = redis.call('TIME')
local now_us = tonumber(clock[1]) * 1000000 + tonumber(clock[2])
local now_ms = math.floor(now_us / 1000)

local at = 11
local function each(count, act)
    for i = at, at + tonumber(count) - 1 do act(ARGV[i]) end
    at = at + tonumber(count)
end
-- Whether this worker has places, or anything waits for one: else none of that is looked at.
local limited = redis.call('EXISTS', PLACES .. worker, QUEUES) > 0
local function forget(number)
    redis.call('HDEL', KEYS[2], number)
    redis.call('HDEL', KEYS[3], number)
end
local function settle(number)
    forget(number)
    if limited then leave_place(worker, number, now_ms, freed) end
end
local function give_back(number, change)
    -- To the head of the queue it came from.
    local flight = redis.call('HGET', KEYS[2], number)
    if flight then
        local key, message = string.match(flight, '^(%Z*)%z(.*)$')
        local started = change or (limited and redis.call('HEXISTS', KEYS[3], number) == 1)
        -- First what frees memory: a full broker refuses a script's first change, if that takes some.
        forget(number)
        return_message(worker, number, key, change and change(message) or message, started, now_us, freed)
    end
end
each(ARGV[5], settle)
each(ARGV[6], give_back)
each(ARGV[7], function(number) give_back(number, delivered_again) end)
each(ARGV[8], function(number)
    if redis.call('HEXISTS', KEYS[2], number) == 1 then
        redis.call('HDEL', KEYS[3], number)  -- is not there; but a full broker refuses no second change
        redis.call('HSET', KEYS[3], number, '1')
    end
end)
local evicted_at = at + 4 * tonumber(ARGV[9])
for i = evicted_at, evicted_at + 3 * tonumber(ARGV[10]) - 1, 3 do
    give_back(ARGV[i], function(message) return evicted(message, ARGV[i + 1], ARGV[i + 2]) end)
end
for i = at, evicted_at - 1, 4 do
    local number, key, result, keep_s = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]
    -- Sent a second time, since the answer to the first got lost, it is stored and acknowledged already.
    if redis.call('HEXISTS', KEYS[2], number) == 1 then
        settle(number)  -- first, here too
        if redis.call('GETRANGE', key, 0, 19) ~= '{"status": "SUCCESS"' then
            if keep_s == '0' then
                redis.call('SET', key, result)
            else
                redis.call('SET', key, result, 'EX', keep_s)
            end
            redis.call('PUBLISH', key, result)
        end
    end
end

local queues, wanted, number = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local next_due_ms = -1
local function due_at(ms)
    local wait_ms = math.max(0, ms - now_ms)
    if next_due_ms < 0 or wait_ms < next_due_ms then next_due_ms = wait_ms end
end
for i = 4, 3 + queues do
    -- A delayed message begins with the key it is to be queued under, and a NUL.
    for _, delayed in ipairs(redis.call('ZRANGEBYSCORE', KEYS[i], '-inf', now_ms, 'LIMIT', 0, 100)) do
        local key, message = string.match(delayed, '^(%Z*)%z(.*)$')
        enqueue(key, message)
        redis.call('ZREM', KEYS[i], delayed)
    end
    local first = redis.call('ZRANGE', KEYS[i], 0, 0, 'WITHSCORES')
    if first[2] then due_at(tonumber(first[2])) end
end

local answer = {1, -1}
local function hand_out(key, message, limits)
    redis.call('HSET', KEYS[2], number, key .. '\0' .. message)
    number, wanted = number + 1, wanted - 1
    answer[#answer + 1] = key
    answer[#answer + 1] = limits and limits.revoked and revoked(message) or message
end

-- How many more are set apart at once: who has ten thousand of a key does not hold the others up.
local to_set_apart = 200
local function take_from(list)
    while wanted > 0 and to_set_apart > 0 do
        local asked = wanted
        local messages = redis.call('RPOP', list, asked)
        if not messages then return end
        for _, message in ipairs(messages) do
            if message == '' then message = next_in_turn(list) end
            local limits = message and limits_of(message)
            local until_ms = limits and place_for(list, limits, worker, number, now_us)
            if until_ms then
                set_apart(list .. '\0' .. message, limits, until_ms, false)
                limited, to_set_apart = true, to_set_apart - 1
            elseif message then
                hand_out(list, message, limits)
            end
        end
        if #messages < asked then return end
    end
end

-- Those that wait for a place and may have one now: by the priority of the first, queue and key.
local ready, any_ready = {}, false
local function queue_at(i) return string.sub(KEYS[i], #DELAYED + 1) end
local function note_ready(priority, queue, name)
    ready[priority] = ready[priority] or {}
    table.insert(ready[priority], {queue, name})
    any_ready = true
end
if limited and wanted > 0 then
    for i = 4, 3 + queues do
        local queue = queue_at(i)
        for _, name in ipairs(redis.call('ZRANGEBYSCORE', LIMITED .. queue, '-inf', now_ms, 'LIMIT', 0, 100)) do
            local _, priority = first_apart(queue, name)
            if priority then note_ready(priority, queue, name) end
        end
    end
end
local function take_apart(priority)
    local keys = ready[priority] or {}
    local i = 1
    while keys[i] and wanted > 0 do
        local queue, name = unpack(keys[i])
        local flight, its = first_apart(queue, name)
        if its and its < priority then
            note_ready(its, queue, name)
        elseif flight then
            local key, message = string.match(flight, '^(%Z*)%z(.*)$')
            redis.call('ZREM', LIMITED .. queue, name) -- first, here too
            local limits = limits_of(message)
            local until_ms = refused_until(limits, worker, number, now_us)
            redis.call('ZADD', LIMITED .. queue, until_ms or now_ms, name)
            if not until_ms then
                redis.call('ZREM', LIMITED .. queue .. '\1' .. name, flight)
                hand_out(key, message, limits)
                -- And one more of it when the others have had their turn.
                if first_apart(queue, name) then table.insert(keys, keys[i]) end
            end
        end
        i = i + 1
    end
end

-- Of the same priority, what waits for a place and may have one comes first every other time, as it happens.
local apart_first, priority = now_us % 2 == 0, false
for i = 4 + queues, #KEYS do
    if wanted == 0 then break end
    local its = any_ready and tonumber(string.match(KEYS[i], SEPARATOR .. '(%d+)$') or 0) % 10
    if its ~= priority then
        if priority and not apart_first then take_apart(priority) end
        priority = its
        if apart_first then take_apart(priority) end
    end
    take_from(KEYS[i])
end
if priority and not apart_first then take_apart(priority) end

if limited then
    for i = 4, 3 + queues do
        local first = redis.call('ZRANGE', LIMITED .. queue_at(i), 0, 0, 'WITHSCORES')
        if first[2] and first[2] ~= 'inf' then due_at(math.max(tonumber(first[2]), now_ms + 1)) end
    end
    tell_of(freed, now_ms)
end
if to_set_apart <= 0 then due_at(now_ms + 1) end
answer[2] = next_due_ms
return answer
