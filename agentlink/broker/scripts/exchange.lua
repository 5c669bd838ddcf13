-- A worker's whole business with the broker, in one step: acknowledge, give back, take.
--   KEYS[1]  all leases: worker → the server's time, in ms, at which its lease ends
--   KEYS[2]  this worker's messages in flight: number → queue key, NUL, message
--   KEYS[3]  numbers of those whose task has been started
--   KEYS[4…3+n]      the delayed messages of n queues
--   KEYS[4+n…]       the lists to take from, most urgent first
--   ARGV[1]  the worker        ARGV[2]  n       ARGV[3]  how many messages it wants
--   ARGV[4]  the number of the first one it gets
--   ARGV[5], ARGV[6], ARGV[7], ARGV[8]  how many of the numbers in ARGV[11…] are: acknowledged; given back (the youngest
--            first); given back after their task was started and died; started
--   ARGV[9]  how many messages, after those, are acknowledged with a result: number, the result's key, result, seconds it
--            is kept or '0'
--   ARGV[10] how many, after those, are given back since their task was evicted: number, how often, bytes to be reserved
-- Returns {0} when the worker has no lease (any more): nothing has been done. Else {1, ms until the next delayed message
-- is due or -1, key, message, key, message …}.
if not redis.call('ZSCORE', KEYS[1], ARGV[1]) then
    return {0}
end

local at = 11
local function each(count, act)
    for i = at, at + tonumber(count) - 1 do act(ARGV[i]) end
    at = at + tonumber(count)
end
local function settle(number)
    redis.call('HDEL', KEYS[2], number)
    redis.call('HDEL', KEYS[3], number)
end
local function give_back(number, change)
    -- To the head of the queue it came from.
    local flight = redis.call('HGET', KEYS[2], number)
    if flight then
        local key, message = string.match(flight, '^(%Z*)%z(.*)$')
        -- First what frees memory: a full broker refuses a script's first change, if that takes some.
        settle(number)
        redis.call('RPUSH', key, change and change(message) or message)
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

local clock = redis.call('TIME')
local now_ms = tonumber(clock[1]) * 1000 + math.floor(tonumber(clock[2]) / 1000)
local queues, wanted, number = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local next_due_ms = -1
for i = 4, 3 + queues do
    -- A delayed message begins with the key it is to be queued under, and a NUL.
    for _, delayed in ipairs(redis.call('ZRANGEBYSCORE', KEYS[i], '-inf', now_ms, 'LIMIT', 0, 100)) do
        local key, message = string.match(delayed, '^(%Z*)%z(.*)$')
        enqueue(key, message)
        redis.call('ZREM', KEYS[i], delayed)
    end
    local first = redis.call('ZRANGE', KEYS[i], 0, 0, 'WITHSCORES')
    if first[2] then
        local wait_ms = math.max(0, tonumber(first[2]) - now_ms)
        if next_due_ms < 0 or wait_ms < next_due_ms then next_due_ms = wait_ms end
    end
end

local answer = {1, next_due_ms}
for i = 4 + queues, #KEYS do
    if wanted == 0 then break end
    local messages = redis.call('RPOP', KEYS[i], wanted)
    if messages then
        for _, message in ipairs(messages) do
            if message == '' then message = next_in_turn(KEYS[i]) end
            if message then
                redis.call('HSET', KEYS[2], number, KEYS[i] .. '\0' .. message)
                number, wanted = number + 1, wanted - 1
                answer[#answer + 1] = KEYS[i]
                answer[#answer + 1] = message
            end
        end
    end
end
return answer
