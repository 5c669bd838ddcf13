-- Queue one message and whatever belongs to it, all or nothing, unless its caller has given up by now.
--   KEYS[1]  the queue
--   ARGV[1]  the message
--   ARGV[2]  the server's time, in ms, after which the caller no longer waits for an answer
--   ARGV[3]  a JSON list of commands to run with it, each a list: name, arguments
-- Returns 1 when queued and 0 when it came too late. A server that was stopped runs what lies in its sockets when it is
-- continued: without the deadline, calls that had failed for their callers would run then.
local now = redis.call('TIME')
if tonumber(now[1]) * 1000 + math.floor(tonumber(now[2]) / 1000) > tonumber(ARGV[2]) then
    return 0
end
redis.call('LPUSH', KEYS[1], ARGV[1])
for _, command in ipairs(cjson.decode(ARGV[3])) do
    redis.call(unpack(command))
end
return 1
