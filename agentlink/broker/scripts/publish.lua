-- Queue messages and whatever belongs to them, all or nothing, once, unless their caller has given up by now.
--   KEYS[1]      tells that this call has been accepted: a caller that lost the answer asks again
--   KEYS[1+i]    where message i goes: a queue's list, that of a run in it, the sorted set of a queue's delayed messages, or
--                a hash in which it is held back
--   ARGV[1]      the server's time, in ms, after which the caller no longer waits for an answer; '' for ever
--   ARGV[2]      ms for which KEYS[1] is kept; '' to do without
--   ARGV[3]      a JSON list of commands to run with them, each a list: name, arguments. EXPECT, an answer and a command: see
--                below; TELL, a kind and JSON: an event, see events.lua
--   ARGV[4]      what they count for in their tree, see fanout.lua; '' for nothing
--   ARGV[3i+2]   message i          (the first message is at ARGV[5])
--   ARGV[3i+3]   '' to queue it now; else the server's time, in ms, at which it is due, or the field of the hash
--   ARGV[3i+4]   the channel on which workers listen for news of its queue
-- Returns 1 when queued, 0 when it came too late, {'overtaken'} when an answer is another than was expected, and what
-- `refusal` says when there are too many. A server that was stopped runs what lies in its sockets when it is continued: without the deadline, calls that had failed for their
-- callers would run then.
local clock = redis.call('TIME')
local now_ms = tonumber(clock[1]) * 1000 + math.floor(tonumber(clock[2]) / 1000)
if ARGV[1] ~= '' and now_ms > tonumber(ARGV[1]) then
    return 0
end
local counting, commands = ARGV[4] ~= '' and cjson.decode(ARGV[4]), cjson.decode(ARGV[3])
if redis.call('EXISTS', KEYS[1]) == 0 then
    for _, command in ipairs(commands) do
        if command[1] == 'EXPECT' and tostring(redis.call(unpack(command, 3))) ~= command[2] then return {'overtaken'} end
    end
    local refused = counting and refusal(counting)
    if refused then return refused end
end
if ARGV[2] ~= '' and not redis.call('SET', KEYS[1], '1', 'NX', 'PX', ARGV[2]) then
    return 1
end
-- First what may fail: a message that is queued stays queued.
for _, command in ipairs(commands) do
    if command[1] == 'TELL' then
        tell(command[2], command[3])
    elseif command[1] ~= 'EXPECT' then
        redis.call(unpack(command))
    end
end
if counting then count_sent(counting) end
local told = {}
for i = 1, #KEYS - 1 do
    local message, due_ms, channel = ARGV[3 * i + 2], ARGV[3 * i + 3], ARGV[3 * i + 4]
    if due_ms == '' then
        enqueue(KEYS[1 + i], message)
    elseif not tonumber(due_ms) then
        redis.call('HSET', KEYS[1 + i], due_ms, message)
    else
        redis.call('ZADD', KEYS[1 + i], due_ms, message)
    end
    if not told[channel] then
        redis.call('PUBLISH', channel, '')
        told[channel] = true
    end
end
return 1
