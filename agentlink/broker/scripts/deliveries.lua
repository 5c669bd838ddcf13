-- Stands before the scripts that give messages back.
-- One more delivery, counted where the message's JSON begins: every reader of it skips what it does not know.
local function delivered_again(message)
    local count, rest = string.match(message, '^{"agentlink_deliveries": (%d+), (.*)$')
    if not count then
        count, rest = 0, string.sub(message, 2)
    end
    return '{"agentlink_deliveries": ' .. (count + 1) .. ', ' .. rest
end

-- The same for an eviction, which is no delivery: how often by now, and what is to be reserved.
local function evicted(message, times, bytes)
    local deliveries, rest = string.match(message, '^({"agentlink_deliveries": %d+, )(.*)$')
    if not deliveries then
        deliveries, rest = '{', string.sub(message, 2)
    end
    rest = string.gsub(rest, '^"agentlink_evicted": %b[], ', '')
    return deliveries .. '"agentlink_evicted": [' .. times .. ', ' .. bytes .. '], ' .. rest
end

-- One whose task was revoked, as it is handed to a worker that may not have heard of that.
local function revoked(message)
    return '{"agentlink_revoked": true, ' .. string.sub(message, 2)
end
