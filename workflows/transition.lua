-- Move one step and the run of the same id, if any, to a new state: only along the transition tables, and counted once.
-- Stands after ending.lua.
--   KEYS[1]  the run that the step belongs to        KEYS[2]  the run that has the step's own id
--   KEYS[3]  the tree it counts in
--   ARGV[1]  step id ('' when it is no step: a workflow being built, or a run failed from outside)
--   ARGV[2]  the step's new state, or ''             ARGV[3]  the step's record: JSON, without arrays
--   ARGV[4]  JSON object of the states a step may come from
--   ARGV[5]  the new state of the run KEYS[2], or '' ARGV[6]  JSON object of the states that run may come from
--   ARGV[7]  '1' when the run's new state is terminal
--   ARGV[8]  the state in which the step ends run KEYS[1], or ''
--   ARGV[9]  the step that this one, just started, comes after; or ''
--   ARGV[10] '1' when the step has ended, and was sent by another's body, or after one that was
--   ARGV[11] seconds a task may run                  ARGV[12] the facts, see ending.lua
-- Runs that are not known (expired, or tasks outside any run) are left alone.
local facts = cjson.decode(ARGV[12])
local origins = cjson.decode(ARGV[4])

-- Celery tells the next step before it stores the result of the one before: that has succeeded by now, whatever we read.
-- Not so where the one before has replaced itself by this one: it ends when the last of its replacement does.
local function came_before(id)
    local record = string.match(redis.call('HGET', KEYS[1] .. ':steps', id) or '', '^RUNNING (.*)$')
    return record and (cjson.decode(record).replacements or 0) >= (cjson.decode(ARGV[3]).replacements or 0)
end

if ARGV[9] ~= '' and ARGV[9] ~= ARGV[1] and came_before(ARGV[9]) then
    move_step(facts, KEYS[1], ARGV[9], 'SUCCEEDED', '{"ended_at": ' .. facts.now .. '}', origins, KEYS[3])
end

if ARGV[1] ~= '' and move_step(facts, KEYS[1], ARGV[1], ARGV[2], ARGV[3], origins, KEYS[3]) and ARGV[8] ~= '' then
    end_stood_for(facts, KEYS[1], ARGV[1], ARGV[2], KEYS[3])
    fail(facts, KEYS[1], ARGV[8])
end

if ARGV[10] == '1' and redis.call('SREM', KEYS[3] .. ':live', ARGV[1]) == 1 then
    count_live(KEYS[3], -1)
    -- In no run: its tree is kept for as long as the task it began with may run.
    if redis.call('EXISTS', KEYS[1]) == 0 and redis.call('SCARD', KEYS[3] .. ':live') == 0 then
        redis.call('EXPIRE', KEYS[3], ARGV[11])
    end
end

if ARGV[5] ~= '' then
    local state = redis.call('HGET', KEYS[2], 'state')
    if state and cjson.decode(ARGV[6])[state] then
        if ARGV[7] == '1' then
            end_run(facts, KEYS[2], ARGV[5])
        else
            set_state(facts, KEYS[2], ARGV[5])
            redis.call('HSET', KEYS[2], 'started_at', facts.now)
        end
    end
end
