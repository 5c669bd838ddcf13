-- Stands before the scripts that queue messages or take them: runs take turns.
-- A message of a run waits in that run's own list, named by its key: a queue's list for runs, \1, the run. In the queue's
-- list there is an empty place for it, so that lengths are true; who takes a place gets the oldest message of the run
-- whose turn it is. The runs that wait are in a list of their own, named as if for a run without a name.
-- When a message was queued ends its JSON: at its beginning, other marks are looked for. One that is queued again was queued
-- now.
local stamp
local function stamped(message)
    if not stamp then
        local clock = redis.call('TIME')
        stamp = string.format(', "queued_at": %d.%06d}', clock[1], clock[2])
    end
    -- Few messages end with a number: whether it is a stamp is looked at only where one does.
    local last = string.byte(message, -2)
    local old = last and last >= 48 and last <= 57 and string.match(string.sub(message, -40), ', "queued_at": [%d.]+}$')
    return string.sub(message, 1, -1 - (old and #old or 1)) .. stamp
end

local function enqueue(key, message)
    message = stamped(message)
    local list = string.match(key, '^(.*)\1')
    if not list then
        redis.call('LPUSH', key, message)
        return
    end
    if redis.call('LPUSH', key, message) == 1 then
        redis.call('LPUSH', list .. '\1', key)
    end
    redis.call('LPUSH', list, '')
end

local function next_in_turn(list)
    local key = redis.call('RPOP', list .. '\1')
    if not key then return nil end -- somebody has deleted it by hand
    local message = redis.call('RPOP', key)
    if redis.call('EXISTS', key) == 1 then
        redis.call('LPUSH', list .. '\1', key)
    end
    return message
end
