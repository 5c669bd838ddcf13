-- Since when the message that is next in each queue has waited.
--   KEYS     lists of queues, those of runs among them    ARGV[1]  of so many runs in a list the first message is looked at
-- Returns for each list the server's time, in seconds, at which the oldest of the messages looked at was queued; '' where
-- there is none, or none that tells.
local function queued_at(list)
    local message = redis.call('LINDEX', list, -1)
    return message and tonumber(string.match(string.sub(message, -40), '"queued_at": ([%d.]+)}$')), message
end

local answer = {}
for i, list in ipairs(KEYS) do
    local oldest, message = queued_at(list)
    if message == '' then -- the place of a run
        for _, run in ipairs(redis.call('LRANGE', list .. '\1', -ARGV[1], -1)) do
            local at = queued_at(run)
            if at and at < (oldest or math.huge) then oldest = at end
        end
    end
    answer[i] = oldest and string.format('%.6f', oldest) or ''
end
return answer
