-- A worker says that it lives, and gives the messages of those that don't back to the head of their queues.
--   KEYS[1]  all leases: worker → the server's time, in ms, at which its lease ends
--   KEYS[2]  when any worker said so last
--   ARGV[1]  the worker    ARGV[2]  the length of a lease, in ms    ARGV[3]  '1' to begin a lease, '' to renew it
--   ARGV[4]  the prefix of the keys of messages in flight           ARGV[5]  that of the keys of started ones
--   ARGV[6]  the prefix of the channels on which workers listen     ARGV[7]  what parts a queue's name from a priority
-- Returns {1 if the worker has its lease, else 0, dead worker, number of its messages, …}.
local clock = redis.call('TIME')
local now_us = tonumber(clock[1]) * 1000000 + tonumber(clock[2])
local now_ms = math.floor(now_us / 1000)
local lease_ms = tonumber(ARGV[2])
local holds = ARGV[3] == '1' or redis.call('ZSCORE', KEYS[1], ARGV[1])

-- Nobody was heard for half a lease: the server itself was stopped, or the machine slept. All leases look over, whoever
-- lives; those that do get the time to say so.
local silence_ms = now_ms - tonumber(redis.call('GET', KEYS[2]) or 0)
if silence_ms > lease_ms / 2 then
    for _, worker in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now_ms + lease_ms / 2)) do
        redis.call('ZADD', KEYS[1], now_ms + lease_ms / 2, worker)
    end
end
redis.call('SET', KEYS[2], now_ms, 'PX', 100 * lease_ms)
if holds then
    redis.call('ZADD', KEYS[1], now_ms + lease_ms, ARGV[1])
end

local answer, freed = {holds and 1 or 0}, {}
for _, dead in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', '(' .. now_ms)) do
    local flights, started = ARGV[4] .. dead, ARGV[5] .. dead
    local numbers = redis.call('HKEYS', flights)
    -- The youngest first: the oldest ends up at the very head.
    table.sort(numbers, function(a, b) return tonumber(a) > tonumber(b) end)
    for _, number in ipairs(numbers) do
        local key, message = string.match(redis.call('HGET', flights, number), '^(%Z*)%z(.*)$')
        local has_started = redis.call('HEXISTS', started, number) == 1
        if has_started then
            message = delivered_again(message)
        end
        return_message(dead, number, key, message, has_started, now_us, freed)
        local parted = string.find(key, ARGV[7], 1, true)
        redis.call('PUBLISH', ARGV[6] .. (parted and string.sub(key, 1, parted - 1) or key), '')
    end
    redis.call('DEL', flights, started)
    redis.call('ZREM', KEYS[1], dead)
    answer[#answer + 1] = dead
    answer[#answer + 1] = #numbers
end
tell_of(freed, now_ms)
return answer
