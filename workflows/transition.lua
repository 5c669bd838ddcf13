-- Move one step and the run of the same id, if any, to a new state: only along the transition tables, and counted once.
--   KEYS[1]  the run that the step belongs to        KEYS[2]  the run that has the step's own id
--   KEYS[3]  the tree it counts in
--   ARGV[1]  step id ('' when it is no step: a workflow being built, or a run failed from outside)
--   ARGV[2]  the step's new state, or ''             ARGV[3]  the step's record: JSON, without arrays
--   ARGV[4]  JSON list of the states a step may come from    ARGV[5]  '1' when the step's new state is terminal
--   ARGV[6]  the new state of the run KEYS[2], or '' ARGV[7]  JSON list of the states that run may come from
--   ARGV[8]  '1' when the run's new state is terminal        ARGV[9]  now, seconds since 1970
--   ARGV[10] the state in which the step ends run KEYS[1], or ''    ARGV[11] JSON of the failure
--   ARGV[12] seconds an ended run is kept
--   ARGV[13] the prefix of runs' keys                        ARGV[14] the prefix of results' keys
--   ARGV[15], ARGV[16] what a run's failed result is, before and after its id
--   ARGV[17] the step that this one, just started, comes after; or ''
--   ARGV[18] the prefix of trees' keys       ARGV[19] '1' when the step was sent by another's body, or after one that was
--   ARGV[20] seconds a task may run
-- Runs that are not known (expired, or tasks outside any run) are left alone.
local function contains(list, value)
    for _, item in ipairs(cjson.decode(list)) do
        if item == value then return true end
    end
    return false
end

local end_run

-- So many of the steps that a tree has planned have ended.
local function count_ended(tree, number)
    if redis.call('HINCRBY', tree, 'planned', -number) < 0 then -- it was forgotten
        redis.call('DEL', tree)
    else
        count_live(tree, -number)
    end
end

local function move_step(run, id, state, record, terminal)
    if redis.call('EXISTS', run) == 0 then return false end
    local steps = run .. ':steps'
    local old = redis.call('HGET', steps, id)
    local old_state, old_record = string.match(old or 'WAITING {}', '^(%u+) (.*)$')
    if not contains(ARGV[4], old_state) then return false end
    -- What was planned stays known, whoever reports (a step failed because another had, a replacement of itself).
    local facts, known = cjson.decode(record), cjson.decode(old_record)
    for _, name in ipairs({'place', 'name', 'attempt', 'started_at', 'worker', 'stands_for'}) do
        if facts[name] == nil or facts[name] == '' then facts[name] = known[name] end
    end
    redis.call('HSET', steps, id, state .. ' ' .. cjson.encode(facts))
    redis.call('EXPIRE', steps, redis.call('TTL', run))
    if not old then redis.call('HINCRBY', run, 'steps_total', 1) end
    if terminal then
        redis.call('HINCRBY', run, 'steps_done', 1)
        -- What was planned and not reached ended with its run, and is not counted again should it end after all.
        if (facts.place or '') ~= '' and redis.call('HINCRBY', run, 'open', -1) >= 0 then
            count_ended(KEYS[3], 1)
        end
    end
    return true
end

-- End a step that has replaced itself by others, and waits for the last of them.
local function end_replaced(run, id, state)
    local record = redis.call('HGET', run .. ':steps', id) or ''
    if string.match(record, '^RUNNING ') then
        local error = ARGV[3] ~= '' and cjson.decode(ARGV[3]).error
        local facts = {ended_at = tonumber(ARGV[9]), error = error or nil}
        move_step(run, id, state, cjson.encode(facts), true)
    end
end

-- The same of the step that `id` is a part of what came in the place of, and of whatever that stands for in turn.
local function end_stood_for(run, id, state)
    while id and id ~= '' do
        end_replaced(run, id, state)
        local facts = string.match(redis.call('HGET', run .. ':steps', id) or '', '^%u+ (.*)$')
        id = facts and cjson.decode(facts).stands_for
    end
end

local function fail(run, state)
    local run_state = redis.call('HGET', run, 'state')
    if run_state == 'QUEUED' or run_state == 'RUNNING' then
        end_run(run, state)
    end
end

function end_run(run, state)
    redis.call('HSET', run, 'state', state, 'ended_at', ARGV[9])
    redis.call('EXPIRE', run, ARGV[12])
    redis.call('EXPIRE', run .. ':steps', ARGV[12])
    local id = string.sub(run, #ARGV[13] + 1)
    local root = redis.call('HGET', run, 'root_id') or id
    local tree, open = ARGV[18] .. root, tonumber(redis.call('HGET', run, 'open') or 0)
    if open > 0 then
        count_ended(tree, open)
        redis.call('HSET', run, 'open', 0)
    end
    count_live(tree, -redis.call('SREM', tree .. ':live', id))
    if root == id then
        redis.call('EXPIRE', tree, ARGV[12])
    end
    if state ~= 'SUCCEEDED' then
        -- Its last step has its id, and may have replaced itself by one that has not begun.
        end_replaced(run, id, state)
        redis.call('HSET', run, 'failure', ARGV[11])
        -- Whoever waits for the run gets the step's own error, also where Celery tells the last step nothing.
        local result = ARGV[14] .. id
        if not string.find(redis.call('GETRANGE', result, 0, 30), '^{"status": "[SFR][UAE][CIV]') then
            local value = ARGV[15] .. id .. ARGV[16]
            redis.call('SET', result, value, 'EX', ARGV[12])
            redis.call('PUBLISH', result, value)
        end
        local errbacks = redis.call('HGET', run, 'errbacks')
        if errbacks then
            local outgoing = cjson.decode(errbacks)
            redis.call('LPUSH', outgoing.key, outgoing.message)
            redis.call('PUBLISH', outgoing.wake, '')
        end
    end
    -- A workflow called as a step: the outer run goes by it.
    local parent = redis.call('HGET', run, 'parent_id')
    if parent and parent ~= '' then
        local outer = ARGV[13] .. parent
        if move_step(outer, id, state, '{"ended_at": ' .. ARGV[9] .. '}', true) and state ~= 'SUCCEEDED' then
            end_stood_for(outer, redis.call('HGET', run, 'stands_for'), state)
            fail(outer, state)
        end
    end
end

-- Celery tells the next step before it stores the result of the one before: that has succeeded by now, whatever we read.
-- Not so where the one before has replaced itself by this one: it ends when the last of its replacement does.
local function came_before(id)
    local facts = string.match(redis.call('HGET', KEYS[1] .. ':steps', id) or '', '^RUNNING (.*)$')
    return facts and (cjson.decode(facts).replacements or 0) >= (cjson.decode(ARGV[3]).replacements or 0)
end

if ARGV[17] ~= '' and ARGV[17] ~= ARGV[1] and came_before(ARGV[17]) then
    move_step(KEYS[1], ARGV[17], 'SUCCEEDED', '{"ended_at": ' .. ARGV[9] .. '}', true)
end

if ARGV[1] ~= '' and move_step(KEYS[1], ARGV[1], ARGV[2], ARGV[3], ARGV[5] == '1') and ARGV[10] ~= '' then
    end_stood_for(KEYS[1], ARGV[1], ARGV[2])
    fail(KEYS[1], ARGV[10])
end

if ARGV[5] == '1' and ARGV[19] == '1' and redis.call('SREM', KEYS[3] .. ':live', ARGV[1]) == 1 then
    count_live(KEYS[3], -1)
    -- In no run: its tree is kept for as long as the task it began with may run.
    if redis.call('EXISTS', KEYS[1]) == 0 and redis.call('SCARD', KEYS[3] .. ':live') == 0 then
        redis.call('EXPIRE', KEYS[3], ARGV[20])
    end
end

if ARGV[6] ~= '' then
    local state = redis.call('HGET', KEYS[2], 'state')
    if state and contains(ARGV[7], state) then
        if ARGV[8] == '1' then
            end_run(KEYS[2], ARGV[6])
        else
            redis.call('HSET', KEYS[2], 'state', ARGV[6], 'started_at', ARGV[9])
        end
    end
end
