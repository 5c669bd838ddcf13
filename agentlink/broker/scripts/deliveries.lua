-- Stands before the scripts that give messages back.
-- One more delivery, counted where the message's JSON begins: every reader of it skips what it does not know.
local function delivered_again(message)
    local count, rest = string.match(message, '^{"agentlink_deliveries": (%d+), (.*)$')
    if not count then
        count, rest = 0, string.sub(message, 2)
    end
    return '{"agentlink_deliveries": ' .. (count + 1) .. ', ' .. rest
end
