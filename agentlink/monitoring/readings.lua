-- What there is in the broker, in one step.
--   KEYS[1]  leases   KEYS[2]  runs that are queued   KEYS[3]  runs that go on   KEYS[4]  dead letters
--   ARGV[1]  the prefix of messages in flight   ARGV[2]  JSON: of each queue its lists
-- Returns how many messages are in flight, runs queued, runs that go on, dead letters; then of each queue how many wait.
local in_flight = 0
for _, worker in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
    in_flight = in_flight + redis.call('HLEN', ARGV[1] .. worker)
end
local answer = {in_flight, redis.call('ZCARD', KEYS[2]), redis.call('ZCARD', KEYS[3]), redis.call('ZCARD', KEYS[4])}
for _, lists in ipairs(cjson.decode(ARGV[2])) do
    local waiting = 0
    for _, list in ipairs(lists) do waiting = waiting + redis.call('LLEN', list) end
    answer[#answer + 1] = waiting
end
return answer
