-- Queue messages and whatever belongs to them, all or nothing, unless their caller has given up by now.
--   KEYS[i]      where message i goes: a queue's list, or the sorted set of a queue's delayed messages
--   ARGV[1]      the server's time, in ms, after which the caller no longer waits for an answer; '' for ever
--   ARGV[2]      a JSON list of commands to run with them, each a list: name, arguments
--   ARGV[3i]     message i          (the first message is at ARGV[3])
--   ARGV[3i+1]   '' to queue it now; else the server's time, in ms, at which it is due
--   ARGV[3i+2]   the channel on which workers listen for news of its queue
-- Returns 1 when queued and 0 when it came too late. A server that was stopped runs what lies in its sockets when it is
-- continued: without the deadline, calls that had failed for their callers would run then.
local clock = redis.call('TIME')
local now_ms = tonumber(clock[1]) * 1000 + math.floor(tonumber(clock[2]) / 1000)
if ARGV[1] ~= '' and now_ms > tonumber(ARGV[1]) then
    return 0
end
local told = {}
for i, key in ipairs(KEYS) do
    local message, due_ms, channel = ARGV[3 * i], ARGV[3 * i + 1], ARGV[3 * i + 2]
    if due_ms == '' then
        redis.call('LPUSH', key, message)
    else
        redis.call('ZADD', key, due_ms, message)
    end
    if not told[channel] then
        redis.call('PUBLISH', channel, '')
        told[channel] = true
    end
end
for _, command in ipairs(cjson.decode(ARGV[2])) do
    redis.call(unpack(command))
end
return 1
