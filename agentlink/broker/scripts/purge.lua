-- Remove everything that waits in a queue, and tell how much that was.
--   KEYS[1]  its delayed messages    KEYS[2…]  its lists
--   ARGV[1]  its name
local count = redis.call('ZCARD', KEYS[1])
redis.call('DEL', KEYS[1])
for i = 2, #KEYS do
    count = count + redis.call('LLEN', KEYS[i])
    for _, key in ipairs(redis.call('LRANGE', KEYS[i] .. '\1', 0, -1)) do
        redis.call('DEL', key)
    end
    redis.call('DEL', KEYS[i], KEYS[i] .. '\1')
end
for _, name in ipairs(redis.call('ZRANGE', LIMITED .. ARGV[1], 0, -1)) do
    local apart = LIMITED .. ARGV[1] .. '\1' .. name
    count = count + redis.call('ZCARD', apart)
    redis.call('DEL', apart)
    forget_waiting(ARGV[1], name)
end
return count
