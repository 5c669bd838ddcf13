-- Give a signal to the step of a run that has waited for it longest, or keep it for the next that will. Stands after
-- turns.lua and events.lua.
--   KEYS[1]  the run     KEYS[2]  what its steps wait for     KEYS[3]  where their messages are
--   KEYS[4]  the steps that wait, in order      KEYS[5]  signals kept      (KEYS[2] to [5]: see park.lua)
--   KEYS[6]  tells what this very call was told: a caller that lost the answer asks again
--   ARGV[1]  the server's time, in ms, after which the caller no longer waits for an answer
--   ARGV[2]  the signal's name     ARGV[3]  its payload, JSON    ARGV[4]  '1' to give it to all that wait for it now
--   ARGV[5]  JSON list of the states in which a run goes on      ARGV[6]  the most signals kept for a run
--   ARGV[7]  seconds they are kept at least     ARGV[8]  seconds for which KEYS[6] is kept
--   ARGV[9]  the prefix of the channels on which workers listen  ARGV[10] what parts a queue's name from a priority
-- Returns 'late': nothing was done, it came too late; 'unknown': there is no such run; 'full': too many are kept; the state
-- of a run that has ended; or how many steps have got it, '0' when it is kept.
local told = redis.call('GET', KEYS[6])
if told then return told end
local clock = redis.call('TIME')
if tonumber(clock[1]) * 1000 + math.floor(tonumber(clock[2]) / 1000) > tonumber(ARGV[1]) then return 'late' end
local state = redis.call('HGET', KEYS[1], 'state')
if not state then return 'unknown' end
local goes_on = false
for _, name in ipairs(cjson.decode(ARGV[5])) do goes_on = goes_on or name == state end
if not goes_on then return state end

local own = {'[' .. ARGV[2] .. '\0', '(' .. ARGV[2] .. '\1'}
local waiting
if ARGV[4] == '1' then
    waiting = redis.call('ZRANGEBYLEX', KEYS[4], own[1], own[2])
else
    waiting = redis.call('ZRANGEBYLEX', KEYS[4], own[1], own[2], 'LIMIT', 0, 1)
end
local count = #waiting
if count == 0 and redis.call('LLEN', KEYS[5]) >= tonumber(ARGV[6]) then return 'full' end
redis.call('SET', KEYS[6], tostring(count), 'EX', ARGV[8])
for i = count, 1, -1 do -- the last first: the one that has waited longest ends up at the very head
    local step = string.match(waiting[i], '%z([^%z]*)$')
    local facts = cjson.decode(redis.call('HGET', KEYS[2], step))
    facts.payload = ARGV[3]
    redis.call('HSET', KEYS[2], step, cjson.encode(facts))
    redis.call('ZREM', KEYS[4], waiting[i])
    tell('step-signalled', {run_id = string.match(KEYS[1], '[^:]*$'), step_id = step, signal = ARGV[2]})
    local delayed, flight = string.match(redis.call('HGET', KEYS[3], step), '^(%Z*)%z(.*)$')
    redis.call('HDEL', KEYS[3], step)
    -- Where it is no longer it is on its way to a worker, which asks when it begins it.
    if redis.call('ZREM', delayed, flight) == 1 then
        local key, message = string.match(flight, '^(%Z*)%z(.*)$')
        redis.call('RPUSH', key, stamped(message))
        local parted = string.find(key, ARGV[10], 1, true)
        redis.call('PUBLISH', ARGV[9] .. (parted and string.sub(key, 1, parted - 1) or key), '')
    end
end
if count == 0 then
    redis.call('RPUSH', KEYS[5], ARGV[2] .. '\0' .. ARGV[3])
    redis.call('EXPIRE', KEYS[5], math.max(redis.call('TTL', KEYS[1]), tonumber(ARGV[7])))
end
return tostring(count)
