-- A step of a graph has ended: queue those that it was the last to hold up. Stands after graph.lua, and runs in the step that
-- stores the result, after the run has been told.
--   KEYS[1]  the graph     KEYS[2]  its set of steps that may start     KEYS[3]  the run
--   ARGV[1]  the step's number     ARGV[2]  SUCCESS, FAILURE or REVOKED     ARGV[3]  '1' when its run lives with its failure
--   ARGV[4]  the prefix of results' keys     ARGV[5]  seconds a graph is kept whose run has ended
local graph, ready, number, outcome = KEYS[1], KEYS[2], ARGV[1], ARGV[2]
if redis.call('EXISTS', graph) == 0 then return end
local last = redis.call('HGET', graph, 'last')
if number == last then
    if outcome == 'SUCCESS' then
        redis.call('DEL', graph, ready)
    else
        redis.call('HSET', graph, 'begun', '0')
        redis.call('EXPIRE', graph, ARGV[5])
    end
    return
end

local function after(one)
    return string.gmatch(redis.call('HGET', graph, 'after:' .. one), '%d+')
end
local function count_down(one)
    if redis.call('HINCRBY', graph, 'open:' .. one, -1) == 0 then
        redis.call('SADD', ready, one)
    end
end
local function skip_after(one)
    for other in after(one) do
        if other ~= last and redis.call('HSETNX', graph, 'ended:' .. other, 'SKIPPED') == 1 then
            skip_after(other)
            count_down(last)
        end
    end
end

if outcome == 'SUCCESS' then
    local before = redis.call('HGET', graph, 'ended:' .. number)
    redis.call('HSET', graph, 'ended:' .. number, 'SUCCESS')
    if not before then
        for other in after(number) do count_down(other) end
    elseif before == 'FAILURE' and redis.call('HGET', graph, 'begun') == '0' then
        -- A dead letter, sent again when all else had ended: what was skipped for it can be done now.
        begin(graph, ready, KEYS[3], ARGV[4])
    end
elseif outcome == 'FAILURE' and ARGV[3] == '1' then
    if redis.call('HSETNX', graph, 'ended:' .. number, 'FAILURE') == 1 then
        skip_after(number)
        count_down(last)
    end
end

if ended_badly(KEYS[3]) then
    redis.call('HSET', graph, 'begun', '0')
    redis.call('EXPIRE', graph, ARGV[5])
    redis.call('EXPIRE', ready, ARGV[5])
    return
end
for _, one in ipairs(redis.call('SMEMBERS', ready)) do queue(graph, one) end
redis.call('DEL', ready)
