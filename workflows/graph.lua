-- Stands before the scripts of graphs, after turns.lua. A graph is a hash; its steps are numbered from 1, and the last comes
-- after all others:
--   `steps`      JSON: of each step its `id`, and `after`: the numbers of those that need it
--   `begun`      1 and when its run was started, from when its first steps were queued until its run has ended badly;
--                a run that is started anew is another start
--   `after:N`    the numbers of the steps that need step N, separated by commas
--   `open:N`     how many of the steps that N needs have not succeeded; of the last: have not ended
--   `ended:N`    SUCCESS, FAILURE (one that its run lives with), SKIPPED (it needs such a one)
--   `message:N`  the message that starts it: its queue's key, NUL, the channel of its queue's news, NUL, message
-- Beside it, a set has the numbers of those that may start and are not queued, since their run has ended.
local function queue(graph, number)
    local key, channel, message = string.match(redis.call('HGET', graph, 'message:' .. number), '^(%Z*)%z(%Z*)%z(.*)$')
    enqueue(key, message)
    redis.call('PUBLISH', channel, '')
end

local function has_succeeded(result)
    return string.sub(redis.call('GETRANGE', result, 0, 19), 1, 20) == '{"status": "SUCCESS"'
end

local function start_of(run)
    return '1 ' .. (redis.call('HGET', run, 'started_at') or '')
end

-- Queue what can start by what has succeeded so far: all of it, when the graph is new.
local function begin(graph, ready, run, results)
    local steps = cjson.decode(redis.call('HGET', graph, 'steps'))
    local open, succeeded = {}, {}
    for number, step in ipairs(steps) do
        open[number] = open[number] or 0
        succeeded[number] = number < #steps and has_succeeded(results .. step.id)
        if not succeeded[number] then
            for _, other in ipairs(step.after) do open[other] = (open[other] or 0) + 1 end
        end
    end
    redis.call('HSET', graph, 'begun', start_of(run))
    redis.call('DEL', ready)
    for number, step in ipairs(steps) do
        redis.call('HSET', graph, 'after:' .. number, table.concat(step.after, ','), 'open:' .. number, open[number])
        if succeeded[number] then
            redis.call('HSET', graph, 'ended:' .. number, 'SUCCESS')
        else
            redis.call('HDEL', graph, 'ended:' .. number)
            if open[number] == 0 then queue(graph, number) end
        end
    end
end

local function ended_badly(run)
    local state = redis.call('HGET', run, 'state')
    return state == 'FAILED' or state == 'CANCELLED'
end
