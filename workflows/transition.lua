-- Move one step and the run of the same id, if any, to a new state: only along the transition tables, and counted once.
--   KEYS[1]  the run that the step belongs to        KEYS[2]  that run's steps
--   KEYS[3]  the run that has the step's own id
--   ARGV[1]  step id ('' when it is no step: a workflow being built, or a run failed from outside)
--   ARGV[2]  the step's new state, or ''             ARGV[3]  the step's record: JSON
--   ARGV[4]  JSON list of the states a step may come from    ARGV[5]  '1' when the step's new state is terminal
--   ARGV[6]  the new state of the run KEYS[3], or '' ARGV[7]  JSON list of the states that run may come from
--   ARGV[8]  '1' when the run's new state is terminal        ARGV[9]  now, seconds since 1970
--   ARGV[10] JSON of the failure that ends run KEYS[1], or ''
--   ARGV[11] seconds an ended run is kept
-- Runs that are not known (expired, or tasks outside any run) are left alone.
local function contains(list, value)
    for _, item in ipairs(cjson.decode(list)) do
        if item == value then return true end
    end
    return false
end

local function end_run(key, state, failure)
    redis.call('HSET', key, 'state', state, 'ended_at', ARGV[9])
    if failure ~= '' then redis.call('HSET', key, 'failure', failure) end
    redis.call('EXPIRE', key, ARGV[11])
    redis.call('EXPIRE', key .. ':steps', ARGV[11])
end

if ARGV[1] ~= '' and redis.call('EXISTS', KEYS[1]) == 1 then
    local old = redis.call('HGET', KEYS[2], ARGV[1])
    local state = old and string.match(old, '^%u+') or 'WAITING'
    if contains(ARGV[4], state) then
        redis.call('HSET', KEYS[2], ARGV[1], ARGV[2] .. ' ' .. ARGV[3])
        redis.call('EXPIRE', KEYS[2], redis.call('TTL', KEYS[1]))
        if not old then redis.call('HINCRBY', KEYS[1], 'steps_total', 1) end
        if ARGV[5] == '1' then redis.call('HINCRBY', KEYS[1], 'steps_done', 1) end
        local run_state = redis.call('HGET', KEYS[1], 'state')
        if ARGV[10] ~= '' and (run_state == 'QUEUED' or run_state == 'RUNNING') then
            end_run(KEYS[1], 'FAILED', ARGV[10])
        end
    end
end

if ARGV[6] ~= '' then
    local state = redis.call('HGET', KEYS[3], 'state')
    if state and contains(ARGV[7], state) then
        if ARGV[8] == '1' then
            end_run(KEYS[3], ARGV[6], ARGV[6] == 'FAILED' and ARGV[10] or '')
        else
            redis.call('HSET', KEYS[3], 'state', ARGV[6], 'started_at', ARGV[9])
        end
    end
end
