-- Stands before the scripts that move steps and end runs, after fanout.lua and events.lua. `facts` is what all of them are told:
--   now (seconds since 1970), keep_s (how long an ended run is kept), the prefixes of keys: runs, results, trees;
--   and where a run ends badly: failure (JSON), failed and revoked (each what a result is before and after its id).
local CANCELLED_RUNS, ERRANDS = 'agentlink:cancelled', 'agentlink:errands'

local RUN_EVENTS = {
    QUEUED = 'workflow-resumed', RUNNING = 'workflow-started', SUCCEEDED = 'workflow-succeeded', FAILED = 'workflow-failed',
    CANCELLED = 'workflow-cancelled',
}
local STEP_EVENTS = {
    RUNNING = 'step-started', RETRYING = 'step-retrying', SUCCEEDED = 'step-succeeded', FAILED = 'step-failed',
    CANCELLED = 'step-cancelled',
}

local function seconds_since(facts, time)
    return time and tonumber(string.format('%.3f', facts.now - time))
end

-- Of a text its beginning, which ends with a character.
local function cut(text)
    if not text or #text <= 500 then return text end
    return string.match(string.sub(text, 1, 500), '^(.-)[\192-\255]?[\128-\191]*$')
end

local function tell_run(facts, id, state, workflow, called_at)
    local event = {run_id = id, workflow = workflow}
    if state ~= 'QUEUED' and state ~= 'RUNNING' then event.took_s = seconds_since(facts, called_at) end
    if state == 'FAILED' then
        local failure = cjson.decode(facts.failure)
        event.step_id, event.error = failure.step_id, cut(failure.error)
    end
    tell(RUN_EVENTS[state], event)
end

local function tell_step(facts, run_id, id, state, step)
    local event = {
        run_id = run_id, step_id = id, name = step.name, place = step.place, attempt = step.attempt, worker = step.worker,
    }
    if state ~= 'RUNNING' and state ~= 'CANCELLED' then
        event.took_s, event.error = seconds_since(facts, step.started_at), cut(step.error)
        event.peak_bytes, event.cpu_s = step.peak_bytes, step.cpu_s
    end
    tell(STEP_EVENTS[state], event)
end

-- Runs are listed by their states, in the order in which they were called.
local function set_state(facts, run, state)
    local id, index = string.sub(run, #facts.runs + 1), 'agentlink:runs:'
    local known = redis.call('HMGET', run, 'state', 'called_at', 'workflow')
    redis.call('HSET', run, 'state', state)
    redis.call('ZREM', index .. known[1], id)
    redis.call('ZADD', index .. state, known[2], id)
    redis.call('ZREMRANGEBYRANK', index .. state, 0, -facts.keep_runs - 1)
    redis.call('ZREMRANGEBYSCORE', index .. state, '-inf', facts.now - facts.keep_listed_s)
    tell_run(facts, id, state, known[3], known[2])
end

local function add_errand(facts, word, run, due)
    redis.call('ZADD', ERRANDS, 'NX', due, word .. ' ' .. string.sub(run, #facts.runs + 1))
    redis.call('EXPIRE', ERRANDS, facts.keep_listed_s)
end

-- So many of the steps that a tree has planned have ended.
local function count_ended(tree, number)
    if redis.call('HINCRBY', tree, 'planned', -number) < 0 then -- it was forgotten
        redis.call('DEL', tree)
    else
        count_live(tree, -number)
    end
end

-- What a run has planned and not reached ends with it.
local function end_open(run, tree)
    local open = tonumber(redis.call('HGET', run, 'open') or 0)
    if open > 0 then
        count_ended(tree, open)
        redis.call('HSET', run, 'open', 0)
    end
end

local function parsed(step)
    return string.match(step or 'WAITING {}', '^(%u+) (.*)$')
end

-- Whoever waits for a task that never comes gets this, unless there is an answer.
local function leave_result(facts, id, parts)
    local key = facts.results .. id
    if string.find(redis.call('GETRANGE', key, 0, 30), '^{"status": "[SFR][UAE][CIV]') then return end
    local value = parts[1] .. id .. parts[2]
    redis.call('SET', key, value, 'EX', facts.keep_s)
    redis.call('PUBLISH', key, value)
end

-- `origins` tells the states a step may come from. Counted once; runs that are not known are left alone.
local function move_step(facts, run, id, state, record, origins, tree)
    if redis.call('EXISTS', run) == 0 then return false end
    local steps = run .. ':steps'
    local old = redis.call('HGET', steps, id)
    local old_state, old_record = parsed(old)
    if not origins[old_state] then return false end
    -- What was planned stays known, whoever reports (a step failed because another had, a replacement of itself).
    local step, known = cjson.decode(record), cjson.decode(old_record)
    for _, name in ipairs({'place', 'name', 'attempt', 'started_at', 'worker', 'stands_for'}) do
        if step[name] == nil or step[name] == '' then step[name] = known[name] end
    end
    redis.call('HSET', steps, id, state .. ' ' .. cjson.encode(step))
    redis.call('EXPIRE', steps, redis.call('TTL', run))
    tell_step(facts, string.sub(run, #facts.runs + 1), id, state, step)
    if not old then redis.call('HINCRBY', run, 'steps_total', 1) end
    if state == 'SUCCEEDED' or state == 'FAILED' or state == 'CANCELLED' then
        redis.call('HINCRBY', run, 'steps_done', 1)
        -- What was planned and not reached ended with its run, and is not counted again should it end after all.
        if tree and (step.place or '') ~= '' and redis.call('HINCRBY', run, 'open', -1) >= 0 then
            count_ended(tree, 1)
        end
    end
    return true
end

-- End a step that has replaced itself by others, and waits for the last of them.
local function end_replaced(facts, run, id, state, tree)
    local record = redis.call('HGET', run .. ':steps', id) or ''
    if string.match(record, '^RUNNING ') then
        local step = {ended_at = tonumber(facts.now), error = cjson.decode(facts.failure).error}
        move_step(facts, run, id, state, cjson.encode(step), {RUNNING = true}, tree)
        leave_result(facts, id, state == 'CANCELLED' and facts.revoked or facts.failed)
    end
end

-- The same of the step that `id` is a part of what came in the place of, and of whatever that stands for in turn.
local function end_stood_for(facts, run, id, state, tree)
    while id and id ~= '' do
        end_replaced(facts, run, id, state, tree)
        local step = string.match(redis.call('HGET', run .. ':steps', id) or '', '^%u+ (.*)$')
        id = step and cjson.decode(step).stands_for
    end
end

-- The steps of a run that has ended badly which have not begun will not: their messages are refused when they come.
local function withdraw_steps(facts, run)
    local steps = redis.call('HGETALL', run .. ':steps')
    for i = 1, #steps, 2 do
        local state, record = parsed(steps[i + 1])
        if state == 'WAITING' or state == 'RETRYING' then
            redis.call('HSET', run .. ':steps', steps[i], 'CANCELLED ' .. record)
            leave_result(facts, steps[i], facts.revoked)
        end
    end
end

-- What waits for a signal or a time is asked for no more: its message goes from where it was put aside. What a step was told
-- and has not taken yet stays: should the run go on, it is told the same.
local function forget_waits(facts, run)
    local parked = redis.call('HVALS', run .. ':parked')
    for _, value in ipairs(parked) do
        local at = string.find(value, '\0', 1, true)
        redis.call('ZREM', string.sub(value, 1, at - 1), string.sub(value, at + 1))
    end
    redis.call('DEL', run .. ':parked', run .. ':line')
    local waits = redis.call('HGETALL', run .. ':waits')
    for i = 1, #waits, 2 do
        local told = cjson.decode(waits[i + 1])
        if not (told.payload or told.timed_out) then redis.call('HDEL', run .. ':waits', waits[i]) end
    end
    redis.call('EXPIRE', run .. ':waits', facts.keep_s)
    redis.call('ZREM', 'agentlink:waiting', string.sub(run, #facts.runs + 1))
end

local end_run

-- The runs that a run's steps are, and where it was cancelled those that its steps have started, end with it.
local function end_runs_below(facts, run, state)
    local id = string.sub(run, #facts.runs + 1)
    for _, below in ipairs(redis.call('SMEMBERS', run .. ':below')) do
        local key = facts.runs .. below
        if state == 'CANCELLED' or redis.call('HGET', key, 'parent_id') == id then
            local below_state = redis.call('HGET', key, 'state')
            if below_state == 'QUEUED' or below_state == 'RUNNING' then end_run(facts, key, 'CANCELLED') end
        end
    end
end

local function fail(facts, run, state)
    local run_state = redis.call('HGET', run, 'state')
    if run_state ~= 'QUEUED' and run_state ~= 'RUNNING' then return end
    if state == 'FAILED' and redis.call('HGET', run, 'finishes') == '1' then
        -- First its other steps end, those that can: whoever looks after runs ends it then.
        redis.call('HSETNX', run, 'failure', facts.failure)
        add_errand(facts, 'end', run, facts.now)
        return
    end
    end_run(facts, run, state)
end

function end_run(facts, run, state)
    set_state(facts, run, state)
    redis.call('HSET', run, 'ended_at', facts.now)
    note_run_ended(run, state, tonumber(facts.now))
    redis.call('EXPIRE', run, facts.keep_s)
    redis.call('EXPIRE', run .. ':steps', facts.keep_s)
    redis.call('EXPIRE', run .. ':below', facts.keep_s)
    local id = string.sub(run, #facts.runs + 1)
    local root = redis.call('HGET', run, 'root_id') or id
    local tree = facts.trees .. root
    end_open(run, tree)
    count_live(tree, -redis.call('SREM', tree .. ':live', id))
    if root == id then
        redis.call('EXPIRE', tree, facts.keep_s)
    end
    if state ~= 'SUCCEEDED' then
        -- Its last step has its id, and may have replaced itself by one that has not begun.
        end_replaced(facts, run, id, state, tree)
        redis.call('HSETNX', run, 'failure', facts.failure)
        -- Whoever waits for the run gets the step's own error, also where Celery tells the last step nothing.
        leave_result(facts, id, state == 'CANCELLED' and facts.revoked or facts.failed)
        forget_waits(facts, run)
        withdraw_steps(facts, run)
        local errbacks = redis.call('HGET', run, 'errbacks')
        if errbacks then
            -- By a task of its own for each failure: how often it was resumed tells them apart.
            local outgoing, own = cjson.decode(errbacks), '-' .. (redis.call('HGET', run, 'replay') or '0')
            local message = string.gsub(outgoing.message, outgoing.id, outgoing.id .. own)
            redis.call('LPUSH', outgoing.key, message)
            redis.call('PUBLISH', outgoing.wake, '')
        end
        if state == 'CANCELLED' then
            redis.call('ZREMRANGEBYSCORE', CANCELLED_RUNS, '-inf', facts.now - facts.keep_cancelled_s)
            redis.call('ZADD', CANCELLED_RUNS, facts.now, id)
            redis.call('EXPIRE', CANCELLED_RUNS, facts.keep_cancelled_s)
        end
        if state == 'FAILED' and redis.call('HGET', run, 'compensates') == '1' then
            add_errand(facts, 'compensate', run, facts.now)
        end
        end_runs_below(facts, run, state)
    end
    -- A workflow called as a step: the outer run goes by it.
    local parent = redis.call('HGET', run, 'parent_id')
    if parent and parent ~= '' then
        local outer, from = facts.runs .. parent, {WAITING = true, RUNNING = true, RETRYING = true}
        if move_step(facts, outer, id, state, '{"ended_at": ' .. facts.now .. '}', from, tree) and state ~= 'SUCCEEDED' then
            end_stood_for(facts, outer, redis.call('HGET', run, 'stands_for'), state, tree)
            fail(facts, outer, state)
        end
    end
end
