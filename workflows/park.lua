-- A step that waits asks whether its signal, or its time, has come; if not, its message is put aside until then. Stands
-- after events.lua.
--   KEYS[1]  its run             KEYS[2]  the run's steps     KEYS[3]  what each of them waits for: step → JSON
--   KEYS[4]  where the messages put aside are: step → key of the delayed messages, NUL, message there
--   KEYS[5]  the steps that wait for signals, in order: name, NUL, since when, NUL, step
--   KEYS[6]  signals that nobody has waited for yet: name, NUL, payload
--   KEYS[7]  runs in which something waits, by since when     KEYS[8]  the worker's messages in flight
--   KEYS[9]  numbers of those whose task has been started     KEYS[10] the tree the run counts in
--   ARGV[1]  the step's id       ARGV[2]  the signal's name, '' for time alone    ARGV[3]  what to ask a person
--   ARGV[4]  ms until its time is over, '' for never          ARGV[5]  '1' when something else is to be done then
--   ARGV[6]  the number of its message in flight              ARGV[7]  ms after which it asks again, whatever comes
--   ARGV[8]  seconds that is kept which goes on               ARGV[9]  seconds it is kept for where it waits for ever
--   ARGV[10] JSON lists: states in which a run goes on, states from which a step may come to wait, other keys that are
--            needed when it goes on
--   ARGV[11] the prefix of runs' keys      ARGV[12] that of keys of delayed messages
--   ARGV[13] that of the channels on which workers listen     ARGV[14] what parts a queue's name from a priority
-- Returns {'superseded'}: another worker has it; {'unknown'}: there is no such run; {'forgotten'}: there is none any more;
-- {'ended'}: it has ended badly; {'signalled', payload}; {'timed out'}; {'parked'}. What a step is told once it is told again, should it ask again.
local clock = redis.call('TIME')
local now_ms = tonumber(clock[1]) * 1000 + math.floor(tonumber(clock[2]) / 1000)
local run, steps, waits, parked, line, signals, index, in_flight, started, tree = unpack(KEYS)
local step, lists = ARGV[1], cjson.decode(ARGV[10])

local flight = redis.call('HGET', in_flight, ARGV[6])
if not flight then return {'superseded'} end
local state = redis.call('HGET', run, 'state')
local old = redis.call('HGET', waits, step)
if not state then
    redis.call('DEL', waits, parked, line, signals)
    redis.call('ZREM', index, string.sub(run, #ARGV[11] + 1))
    return {old and 'forgotten' or 'unknown'}
end
local facts = old and cjson.decode(old)
if not facts then
    facts = {name = ARGV[2], prompt = ARGV[3], since = clock[1] .. '.' .. string.format('%06d', tonumber(clock[2]))}
    if ARGV[4] ~= '' then
        facts.until_ms = string.format('%.0f', now_ms + tonumber(ARGV[4]))
    end
end
if facts.payload then return {'signalled', facts.payload} end
if facts.timed_out then return {'timed out'} end
local place_in_line = facts.name .. '\0' .. facts.since .. '\0' .. step

local function keep(key, keep_s, own)
    local ttl_s = redis.call('TTL', key)
    if ttl_s < keep_s and (ttl_s >= 0 or (own and ttl_s == -1)) then redis.call('EXPIRE', key, keep_s) end
end
local function contains(list, value)
    for _, item in ipairs(list) do
        if item == value then return true end
    end
    return false
end
local function decided()
    redis.call('HDEL', parked, step)
    redis.call('ZREM', line, place_in_line)
    redis.call('HSET', waits, step, cjson.encode(facts))
    keep(waits, tonumber(ARGV[8]), true)
    if redis.call('HLEN', parked) == 0 then redis.call('ZREM', index, string.sub(run, #ARGV[11] + 1)) end
end

if facts.name ~= '' then
    for _, kept in ipairs(redis.call('LRANGE', signals, 0, -1)) do
        local name, payload = string.match(kept, '^(%Z*)%z(.*)$')
        if name == facts.name then
            redis.call('LREM', signals, 1, kept)
            facts.payload = payload
            decided()
            return {'signalled', payload}
        end
    end
end
local until_ms = tonumber(facts.until_ms)
if until_ms and now_ms >= until_ms then
    if ARGV[5] == '1' then
        facts.timed_out = '1'
        decided()
    end
    return {'timed out'}
end

-- Since the step began; what waited before was forgotten as the run ended.
if state == 'FAILED' or state == 'CANCELLED' then return {'ended'} end

-- First what frees memory: a full broker refuses a script's first change, if that takes some.
redis.call('HDEL', in_flight, ARGV[6])
redis.call('HDEL', started, ARGV[6])
local before = redis.call('HGET', parked, step)
if before then -- the same step's message, that had come twice
    redis.call('ZREM', string.match(before, '^(%Z*)%z(.*)$'))
end
local key = string.match(flight, '^(%Z*)%z')
local parted = string.find(key, ARGV[14], 1, true)
local queue = parted and string.sub(key, 1, parted - 1) or key
local again_ms = now_ms + tonumber(ARGV[7])
redis.call('ZADD', ARGV[12] .. queue, string.format('%.0f', math.min(until_ms or again_ms, again_ms)), flight)
redis.call('PUBLISH', ARGV[13] .. queue, '')
redis.call('HSET', parked, step, ARGV[12] .. queue .. '\0' .. flight)
redis.call('HSET', waits, step, cjson.encode(facts))
if facts.name ~= '' then redis.call('ZADD', line, 0, place_in_line) end
redis.call('ZADD', index, 'NX', facts.since, string.sub(run, #ARGV[11] + 1))

local step_state, record = string.match(redis.call('HGET', steps, step) or '', '^(%u+) (.*)$')
if contains(lists[2], step_state) then
    local known = cjson.decode(record)
    known.worker, known.waiting_for = nil, facts.name ~= '' and facts.name or 'its time'
    redis.call('HSET', steps, step, 'WAITING ' .. cjson.encode(known))
    tell('step-waiting', {
        run_id = string.sub(run, #ARGV[11] + 1), step_id = step, name = known.name, place = known.place,
        waiting_for = known.waiting_for,
    })
end

local keep_s = tonumber(ARGV[8]) + (until_ms and math.ceil((until_ms - now_ms) / 1000) or tonumber(ARGV[9]))
for _, own in ipairs({waits, parked, line, index}) do keep(own, keep_s, true) end
-- A run that has ended is forgotten in its time, unless it is opened again.
if contains(lists[1], state) then
    for _, needed in ipairs({steps, signals, tree, tree .. ':live', unpack(lists[3])}) do keep(needed, keep_s) end
    local agent = redis.call('HGET', tree, 'agent')
    if agent then
        keep(agent, keep_s)
        keep(agent .. ':trees', keep_s)
    end
    while run do -- and those that it is a step of
        keep(run, keep_s)
        keep(run .. ':steps', keep_s)
        local parent = redis.call('HGET', run, 'parent_id')
        run = parent and parent ~= '' and ARGV[11] .. parent
    end
end
return {'parked'}
