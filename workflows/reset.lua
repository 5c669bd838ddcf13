-- Make a run that has ended badly ready to be built again: what has succeeded stays, all else waits. Stands after ending.lua.
--   KEYS[1]  the run    ARGV[1]  the facts    ARGV[2]  seconds a run that goes on is kept
--   ARGV[3]  JSON list of the steps that are to run again though they have succeeded    ARGV[4]  JSON arguments of the first
--            of them, or ''
-- Returns {'reset', ids of steps that had failed}; or, when nothing has been done, {'unknown'}, {'state', its state} when that
-- is no bad end, {'below', the run it is a step of}, {'undone', the run that has undone its steps, or those of a run below it},
-- or {'running', a step that has yet to end}.
local facts, keep_s = cjson.decode(ARGV[1]), ARGV[2]
local chosen = {}
for _, id in ipairs(cjson.decode(ARGV[3])) do chosen[id] = true end

local function each_below(run)
    local id, found = string.sub(run, #facts.runs + 1), {}
    for _, below in ipairs(redis.call('SMEMBERS', run .. ':below')) do
        if redis.call('HGET', facts.runs .. below, 'parent_id') == id then found[#found + 1] = facts.runs .. below end
    end
    return found
end

local function running_step(run)
    local steps = redis.call('HGETALL', run .. ':steps')
    for i = 1, #steps, 2 do
        if parsed(steps[i + 1]) == 'RUNNING' then return steps[i] end
    end
    for _, below in ipairs(each_below(run)) do
        local step = running_step(below)
        if step then return step end
    end
end

local function undone_by(run)
    local by = redis.call('HGET', run, 'undone_by')
    for _, below in ipairs(each_below(run)) do by = by or undone_by(below) end
    return by
end

local answer = {'reset'}

-- A step that nothing has planned comes again with what has sent it. Returns whether the step waits now.
local function reset_step(run, id, state, record)
    if state == 'FAILED' then answer[#answer + 1] = id end
    redis.call('DEL', facts.results .. id)
    local known = cjson.decode(record)
    if (known.place or '') == '' then
        redis.call('HDEL', run .. ':steps', id)
        return false
    end
    redis.call('HSET', run .. ':steps', id, 'WAITING ' .. cjson.encode({name = known.name, place = known.place}))
    return true
end

-- What was planned of a run that is to run again from its beginning may be planned otherwise.
local function forget_plan(run)
    redis.call('DEL', run .. ':steps', run .. ':waits')
    for _, field in ipairs(redis.call('HKEYS', run)) do
        if string.find(field, '^graph:') or string.find(field, '^counted:') then redis.call('HDEL', run, field) end
    end
end

local function reset(run, replay, again)
    local id, steps = string.sub(run, #facts.runs + 1), redis.call('HGETALL', run .. ':steps')
    local open, done = 0, 0
    for i = 1, #steps, 2 do
        local state, record = parsed(steps[i + 1])
        if state == 'SUCCEEDED' and not chosen[steps[i]] and not again then
            done = done + 1
        elseif reset_step(run, steps[i], state, record) then
            open = open + 1
        end
    end
    if again then
        forget_plan(run)
        open = 0
    end
    set_state(facts, run, 'QUEUED')
    redis.call('HSET', run, 'steps_done', done, 'open', open, 'steps_total', redis.call('HLEN', run .. ':steps'))
    redis.call('HSET', run, 'replay', replay)
    redis.call('HDEL', run, 'failure', 'ended_at')
    for _, key in ipairs({run, run .. ':steps', run .. ':below', run .. ':waits', run .. ':signals'}) do redis.call('EXPIRE', key, keep_s) end
    redis.call('DEL', facts.results .. id)
    redis.call('ZREM', CANCELLED_RUNS, id)
    redis.call('ZREM', ERRANDS, 'end ' .. id, 'compensate ' .. id)
    local tree = facts.trees .. redis.call('HGET', run, 'root_id')
    redis.call('HINCRBY', tree, 'planned', open)
    redis.call('EXPIRE', tree, keep_s)
    count_live(tree, open)
    for _, below in ipairs(each_below(run)) do
        local state = redis.call('HGET', below, 'state')
        local below_again = again or chosen[string.sub(below, #facts.runs + 1)]
        if below_again or state == 'FAILED' or state == 'CANCELLED' then reset(below, replay, below_again) end
    end
end

local state = redis.call('HGET', KEYS[1], 'state')
if not state then return {'unknown'} end
local parent = redis.call('HGET', KEYS[1], 'parent_id')
if parent and parent ~= '' then return {'below', parent} end
if state ~= 'FAILED' and state ~= 'CANCELLED' and not (state == 'SUCCEEDED' and next(chosen)) then return {'state', state} end
local undone = undone_by(KEYS[1])
if undone then return {'undone', undone} end
local running = running_step(KEYS[1])
if running then return {'running', running} end
reset(KEYS[1], tonumber(redis.call('HGET', KEYS[1], 'replay') or 0) + 1, false)
if ARGV[4] ~= '' then redis.call('HSET', KEYS[1], 'args:' .. cjson.decode(ARGV[3])[1], ARGV[4]) end
-- Whoever asked is about to build it again; should that process end now, a worker does.
add_errand(facts, 'replay', KEYS[1], facts.now + 2)
return answer
